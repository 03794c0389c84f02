"""Whole runs in a test: made from a run file, stopped where a test wants it, and read back without their seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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


class StopAt(Observer):
    """Ask the run to stop after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, result: StepResult) -> None:
        if result.step == self.step:
            raise RunInterrupted("stopped")
