"""Whole runs in a test: made from a run file, stopped where a test wants it, and read back without their seconds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tutelage.config import build_run, load_config
from tutelage.errors import RunInterrupted
from tutelage.training import Observer, Run, train
from tutelage.types import StepResult

QUICK = ["evaluation.sets=[]", "policy.kl_radius=0.05", "rollout.max_new_tokens=6"]


def made(path: Path, *overrides: str, resume: bool = False) -> Run:
    """The run of a run file, with short answers and without evaluations."""
    return build_run(load_config(path, [*QUICK, *overrides]), resume=resume)


def metrics(folder: Path) -> list[dict[str, Any]]:
    """What a run wrote of each step, without the times."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in record.items() if "second" not in name} for record in records]


def metrics_of(path: Path, folder: Path, *overrides: str) -> list[dict[str, Any]]:
    """What the run of a run file wrote of each step into this folder, with short answers and without evaluations."""
    short = ["evaluation.sets=[]", "rollout.max_new_tokens=6", f"output={folder}"]
    train(build_run(load_config(path, [*short, *overrides])), Observer())
    return metrics(folder)


def check_resumed(
    path: Path, folder: Path, settings: Sequence[str], stop: int, whole: Path, names: Iterable[str]
) -> None:
    """The run of a run file, stopped after a step and resumed, writes into this folder what it wrote into `whole`.

    Args:
      names: of files that must have the same bytes, as they are called within a run's folder.
    """
    output = f"output={folder}"
    with pytest.raises(RunInterrupted):
        train(made(path, *settings, output), StopAt(stop))
    train(made(path, *settings, output, resume=True), Observer())
    assert metrics(folder) == metrics(whole)
    for name in names:
        assert (folder / name).read_bytes() == (whole / name).read_bytes()


class StopAt(Observer):
    """Ask the run to stop after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, result: StepResult) -> None:
        if result.step == self.step:
            raise RunInterrupted("stopped")
