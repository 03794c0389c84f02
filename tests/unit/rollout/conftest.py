"""Servers played by threads of a test."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.support.fake_server import Answer, Fake
from tutelage.rollout.servers import server


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Answer], Fake]]:
    """Start fakes; pauses between retries are remembered in `pauses` and not waited for."""
    monkeypatch.setenv("no_proxy", "*")
    started: list[Fake] = []

    def start(answer: Answer) -> Fake:
        started.append(Fake(answer))
        return started[-1]

    yield start
    for fake in started:
        fake.close()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waited: list[float] = []
    monkeypatch.setattr(server, "_pause", lambda seconds, stopped: waited.append(seconds))
    return waited
