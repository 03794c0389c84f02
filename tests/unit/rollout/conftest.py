"""Servers played by threads of a test, and scored answers in a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.fake_server import Answer, Fake
from tests.support.scored_answers import answers
from tests.support.tiny_models import make_model
from tutelage.models import align, as_language_model
from tutelage.rollout import ScoreCache, TopScorer
from tutelage.rollout.servers import server
from tutelage.types import Rollout


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


@pytest.fixture(scope="module")
def scored() -> list[Rollout]:
    teacher = as_language_model(make_model("qwen3", vocab_size=20, seed=2), "teacher")
    return TopScorer({None: teacher}, align(teacher), 8, 4).score(answers())


@pytest.fixture
def cache(scored: list[Rollout], tmp_path: Path) -> ScoreCache:
    cache = ScoreCache(tmp_path / "scores")
    cache.create({"num_answers": 7, "answers_per_shard": 3})
    for shard in range(cache.num_shards):
        cache.write(shard, scored[3 * shard : 3 * shard + 3])
    return cache
