"""What torch counted on a GPU is a metric of every step there, and of none on a CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.tiny_run import write_run_file
from tutelage.config import build_run, load_config
from tutelage.training import Observer, train
from tutelage.training import step as step_module
from tutelage.training.peak_memory import PeakMemory
from tutelage.types import StepResult


def test_it_counts_on_a_gpu_from_when_it_was_made(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, torch.device]] = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: asked.append(("reset", device)))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: asked.append(("read", device)) or 3 * 2**29)
    peak = PeakMemory("cuda:1")
    assert peak.metrics() == {"memory_gib": 1.5}
    assert asked == [("reset", torch.device("cuda:1")), ("read", torch.device("cuda:1"))]
    assert PeakMemory("cpu").metrics() == PeakMemory("mps").metrics() == {} and len(asked) == 2


@pytest.mark.runs
@pytest.mark.parametrize("found", [{}, {"memory_gib": 1.5}])
def test_it_is_a_metric_of_every_step(found: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if found:
        monkeypatch.setattr(step_module.PeakMemory, "metrics", lambda _: found)
    steps: list[StepResult] = []

    class Listener(Observer):
        def on_step(self, result: StepResult) -> None:
            steps.append(result)

    train(build_run(load_config(write_run_file(tmp_path), ["steps=2", "evaluation.sets=[]"])), Listener())
    assert [{key: value for key, value in step.metrics.items() if key == "memory_gib"} for step in steps] == [found] * 2
