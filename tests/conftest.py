"""Every test runs on one thread and one CPU, and asks no hub."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import huggingface_hub
import pytest
import torch
import typer.main

from tests.support.tiny_models import ARCHITECTURES

torch.set_num_threads(1)
# Of names that stand for models and data sets only their form is looked at.
huggingface_hub.constants.HF_HUB_OFFLINE = True  # type: ignore[misc]


@pytest.fixture(scope="session", autouse=True)
def commands_are_parsed_once() -> Iterator[None]:
    """A process runs one command; a test runs hundreds, and making the parsers takes longer than many of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.main, "get_command", functools.cache(typer.main.get_command))
        yield


@pytest.fixture(params=sorted(ARCHITECTURES))
def architecture(request: pytest.FixtureRequest) -> str:
    return str(request.param)
