"""Whole runs in phases: a warm-up is exactly what it replaces, and an interrupt in any phase changes no byte."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.support.tiny_run import write_run_file
from tutelage.api.generating import generate
from tutelage.config import build_run, load_config
from tutelage.demo import student_path, teacher_path, write_problems
from tutelage.errors import ConfigurationError, RunInterrupted
from tutelage.training import Observer, OptimizerSettings, train
from tutelage.types import StepResult

SFT = '{name = "sft", steps = 2, policy = "teacher", divergence = "sampled_nll", learning_rate = 2e-3}'
BLEND = '{steps = 2, policy = {kl_radius = {schedule = "linear", start = 0.05, stop = 0.0, steps = 2}}}'
OPD = '{name = "opd", policy = "student"}'
THREE = f"phase=[{SFT}, {BLEND}, {OPD}]"


class Rollouts(Observer):
    """Keeps what was sampled, and sends a signal to this process after one step."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.stop_at = stop_at
        self.results: list[StepResult] = []

    def on_step(self, result: StepResult) -> None:
        self.results.append(result)
        if result.step == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)


def run(path: Path, *overrides: str, resume: bool = False, stop_at: int | None = None) -> list[StepResult]:
    observer = Rollouts(stop_at)
    train(build_run(load_config(path, overrides), resume=resume), observer)
    return observer.results


def left(folder: Path, *, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """The last weights, and all lines with their times and some more keys aside."""
    found: dict[str, Any] = {"weights": (folder / "checkpoints/step-000006/model.safetensors").read_bytes()}
    for name in ("metrics.jsonl", "evaluations.jsonl", "samples.jsonl"):
        records = [json.loads(line) for line in (folder / name).read_text().splitlines()]
        found[name] = [{k: v for k, v in r.items() if "second" not in k and k not in without} for r in records]
    return found


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[StepResult]]:
    """An undisturbed run of three phases."""
    folder = tmp_path_factory.mktemp("three")
    return folder / "run", run(write_run_file(folder), THREE)


def test_a_trust_region_and_then_the_student_is_the_annealed_trust_region(tmp_path: Path) -> None:
    """K steps of TRB and then OPD, as two phases or as one schedule, on the packaged pair: the same bytes."""
    write_problems(tmp_path / "problems.jsonl", 18, 1)
    embedded = [f"student={student_path()}", f"teacher={teacher_path()}", f"data={tmp_path / 'problems.jsonl'}"]
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    two_phases = 'phase=[{name = "trb", steps = 4}, {name = "opd", policy = "student"}]'
    run(write_run_file(tmp_path / "one"), *embedded)
    run(write_run_file(tmp_path / "two"), *embedded, two_phases)
    one, two = (left(tmp_path / name / "run", without=("phase",)) for name in ("one", "two"))
    assert one == two and any("kl_radius" in record for record in one["metrics.jsonl"])


def test_metrics_name_the_phase_and_count_schedules_from_its_first_step(three: tuple[Path, list[StepResult]]) -> None:
    metrics = [json.loads(line) for line in (three[0] / "metrics.jsonl").read_text().splitlines()]
    assert [record["phase"] for record in metrics] == ["sft", "sft", "2", "2", "opd", "opd"]
    assert [record.get("kl_radius") for record in metrics] == [None, None, 0.05, 0.025, None, None]
    warm_up = [OptimizerSettings(learning_rate=2e-3 if k < 2 else 1e-3).rate_at(k) for k in range(6)]
    assert [record["learning_rate"] for record in metrics] == warm_up, "its warm-up goes on through the phases"


def test_sft_imitates_the_teachers_answers_to_the_prompts_of_the_first_steps(
    three: tuple[Path, list[StepResult]], tmp_path: Path
) -> None:
    plain = run(write_run_file(tmp_path), "policy=student")
    results = three[1]
    for place, (ours, theirs) in enumerate(zip(results, plain, strict=True)):
        assert [r.prompt_tokens for r in ours.rollouts] == [r.prompt_tokens for r in theirs.rollouts]
        assert [(r.prompt_index, r.sample_index) for r in ours.rollouts] == [(p, g) for p in range(3) for g in range(2)]
        if place < 2:
            assert all(bool((r.blend == 1).all()) for r in ours.rollouts), "every token is the teacher's"
            tokens = sum(len(r) for r in ours.rollouts)
            nll = -sum(float(r.student_logprobs.sum()) for r in ours.rollouts) / tokens
            assert ours.metrics["loss"] == pytest.approx(nll, rel=1e-5)


@pytest.mark.parametrize("stop_at", range(5))
def test_an_interrupt_in_any_phase_and_a_resume_give_the_same_bytes(
    three: tuple[Path, list[StepResult]], tmp_path: Path, stop_at: int
) -> None:
    path = write_run_file(tmp_path)
    with pytest.raises(RunInterrupted, match=f"after {stop_at + 1} of 6 steps"):
        run(path, THREE, stop_at=stop_at)
    run(tmp_path / "run/config.toml", resume=True)
    assert left(tmp_path / "run") == left(three[0])


def test_a_resumed_run_keeps_its_phases(three: tuple[Path, list[StepResult]], tmp_path: Path) -> None:
    path = three[0] / "config.toml"
    with pytest.raises(
        ConfigurationError, match=r"--resume: phase is .*a resumed run must be the run that was started"
    ):
        build_run(load_config(path, ["phase.sft.steps=1"]), resume=True)


def test_the_support_must_hold_in_every_phase(tmp_path: Path) -> None:
    override = "phase=[{steps = 1, divergence = {top_k = 20}}]"
    with pytest.raises(ConfigurationError, match=r"rollout.support_size is 16.*divergence.top_k = 20"):
        build_run(load_config(write_run_file(tmp_path), [override]))


def test_generate_draws_from_the_policy_of_the_step(tmp_path: Path) -> None:
    path, found = write_run_file(tmp_path), {}
    for name, step, overrides in (("phase", 0, [THREE]), ("teacher", 0, ["policy=teacher"]), ("last", 9, [THREE])):
        file = tmp_path / f"{name}.jsonl"
        generate(path, overrides, output=file, step=step, limit=2)
        found[name] = file.read_text()
    assert found["phase"] == found["teacher"] != found["last"]
