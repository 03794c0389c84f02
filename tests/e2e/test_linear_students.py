"""Whole runs of students with linear attention of ours: drafts taken back, resumed, with an adapter, examined."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.support.quick_run import StopAt, made, metrics
from tests.support.tiny_run import write_run_file
from tutelage.cli import app
from tutelage.errors import RunInterrupted
from tutelage.training import Observer, train

OPD, TRB = ["policy=student"], ["policy.name=trust_region", "policy.kl_radius=0.05"]
ADAPTER = "student.adapter.rank=4"


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    """A run of the tiny student with its second layer linear; its teacher has softmax everywhere."""
    path = write_run_file(tmp_path)
    linear = tmp_path / "linear"
    arguments = [
        "linearise",
        str(tmp_path / "student"),
        "--layers",
        "1",
        "--feature-size",
        "4",
        "--output",
        str(linear),
    ]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    path.write_text(path.read_text().replace(f'student = "{tmp_path / "student"}"', f'student = "{linear}"'))
    return path


@pytest.mark.parametrize("method", [OPD, TRB, [*TRB, ADAPTER]], ids=["OPD", "TRB", "TRB with an adapter"])
def test_a_run_is_resumed_to_the_same_bytes(run_file: Path, tmp_path: Path, method: list[str]) -> None:
    settings = ["steps=4", *method]
    run = made(run_file, *settings, f"output={tmp_path}/whole")
    train(run, Observer())
    whole = metrics(tmp_path / "whole")
    assert max(record["logprob_mismatch"] for record in whole) < 1e-5, "rollout and update see one distribution"
    assert whole[-1]["loss"] != whole[0]["loss"]
    with pytest.raises(RunInterrupted):
        train(made(run_file, *settings, f"output={tmp_path}/cut"), StopAt(2))
    train(made(run_file, *settings, f"output={tmp_path}/cut", resume=True), Observer())
    assert metrics(tmp_path / "cut") == whole
    kept = "adapter_model.safetensors" if ADAPTER in method else "model.safetensors"
    for name in (kept, "optimizer.pt"):
        cut, other = (tmp_path / folder / "checkpoints/step-000004" / name for folder in ("cut", "whole"))
        assert cut.read_bytes() == other.read_bytes()
    if ADAPTER in method:
        learned = {name.split(".")[-4] for name in run.models.student.trainable.parameters()}
        assert learned >= {"q_feature_proj", "k_feature_proj", "q_proj", "v_proj", "o_proj", "down_proj"}


def test_drafts_of_any_length_write_the_same_answers(run_file: Path, tmp_path: Path) -> None:
    """A refused draft is taken back out of the states; rollout and update agree in lock-step, too."""
    losses = []
    for length in ("1", "4", "7"):
        folder = tmp_path / length
        train(made(run_file, *TRB, "steps=2", f"rollout.draft_length={length}", f"output={folder}"), Observer())
        losses.append([record["loss"] for record in metrics(folder)])
        assert max(record["logprob_mismatch"] for record in metrics(folder)) < 1e-5
    assert losses[1] == pytest.approx(losses[2], rel=1e-4)


def test_doctor_finds_nothing_and_tells_states_apart(run_file: Path) -> None:
    done = CliRunner().invoke(app, ["doctor", str(run_file), "--set", "rollout.max_new_tokens=6"])
    errors = [line for line in done.output.splitlines() if line.startswith("error")]
    assert all(line.startswith("error   pass@1") for line in errors), done.output  # random models solve nothing
    assert "own teacher: the student learning from itself" in done.output and "+ states 0." in done.output, done.output
