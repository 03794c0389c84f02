"""Whole runs of students with linear attention of ours: drafts taken back, resumed, with an adapter, examined."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from tests.support.quick_run import check_resumed, made, metrics
from tests.support.tiny_run import write_run_file
from tutelage.api.generating import generate
from tutelage.api.scoring import score
from tutelage.cli import app
from tutelage.config import build_run, load_config
from tutelage.errors import ConfigurationError
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
    kept = "adapter_model.safetensors" if ADAPTER in method else "model.safetensors"
    names = [f"checkpoints/step-000004/{name}" for name in (kept, "optimizer.pt")]
    check_resumed(run_file, tmp_path / "cut", settings, 2, tmp_path / "whole", names)
    if ADAPTER in method:
        learned = {name.split(".")[-4] for name in run.models.student.trainable.parameters()}
        assert learned >= {"q_feature_proj", "k_feature_proj", "q_proj", "v_proj", "o_proj", "down_proj"}


TRANSFER = [
    'divergence="attention_transfer"',
    "policy=teacher",
    "optimizer.weight_decay=0.1",
    "optimizer.learning_rate=1e-2",
    "optimizer.warmup_steps=0",
]


def test_a_transfer_touches_linear_layers_alone_and_brings_them_nearer(run_file: Path, tmp_path: Path) -> None:
    original = f"teacher={tmp_path / 'student'}"
    train(made(run_file, "steps=12", original, *TRANSFER, f"output={tmp_path}/run"), Observer())
    losses = [record["loss"] for record in metrics(tmp_path / "run")]
    assert losses[-1] < 0.9 * losses[0] <= 2
    before = load_file(tmp_path / "linear/model.safetensors")
    after = load_file(tmp_path / "run/checkpoints/step-000012/model.safetensors")
    changed = {name for name, weight in before.items() if not torch.equal(weight, after[name])}
    assert changed and all("layers.1.linear_attn." in name for name in changed)


def test_a_transfer_beside_another_loss_and_in_pieces_is_their_sum(run_file: Path, tmp_path: Path) -> None:
    """However the batch is cut up, and for all losses in one pass."""
    settings, found = ["steps=1", f"teacher={tmp_path / 'student'}", "optimizer.warmup_steps=0"], {}
    transfer, reverse = "{name='attention_transfer', coefficient=0.5}", "{name='reverse_kl', support='full'}"
    for name, loss, tokens in (
        ("both", f"[{transfer}, {reverse}]", 4096),
        ("in pieces", f"[{transfer}, {reverse}]", 64),
        ("transfer", f"[{transfer}]", 4096),
        ("reverse", f"[{reverse}]", 4096),
    ):
        values = [f"loss={loss}", f"runtime.micro_batch_tokens={tokens}", f"output={tmp_path}/{name}"]
        train(made(run_file, *settings, *OPD, *values), Observer())
        (record,) = metrics(tmp_path / name)
        found[name] = record["loss"]
    assert found["both"] == pytest.approx(found["in pieces"], rel=1e-5)
    assert found["both"] == pytest.approx(found["transfer"] + found["reverse"], rel=1e-5)
    assert found["transfer"] > 0 and found["reverse"] > 0


def test_a_run_of_phases_is_resumed_to_the_same_bytes(run_file: Path, tmp_path: Path) -> None:
    """In the transfer, and after it, where more weights learn."""
    phases = (
        "phase=[{name='transfer', steps=3, policy='teacher', divergence='attention_transfer', learning_rate=1e-2},"
        " {name='opd', policy='student', divergence='reverse_kl'}]"
    )
    settings = ["steps=6", f"teacher={tmp_path / 'student'}", phases]
    train(made(run_file, *settings, f"output={tmp_path}/whole"), Observer())
    whole = metrics(tmp_path / "whole")
    assert [record["phase"] for record in whole] == ["transfer"] * 3 + ["opd"] * 3
    names = [f"checkpoints/step-000006/{name}" for name in ("model.safetensors", "optimizer.pt")]
    for stop in (1, 4):
        check_resumed(run_file, tmp_path / f"cut-{stop}", settings, stop, tmp_path / "whole", names)


def test_a_transfer_reads_recorded_answers(run_file: Path, tmp_path: Path) -> None:
    """Nothing is drawn; the teacher is loaded for its layers."""
    original = f"teacher={tmp_path / 'student'}"
    generate(run_file, {"policy": "teacher", "teacher": str(tmp_path / "student")}, output=tmp_path / "answers.jsonl",
             samples=2)  # fmt: skip
    score(run_file, tmp_path / "answers.jsonl", tmp_path / "scores", [original])
    settings = ["steps=2", "policy=offline", f"data.scores={tmp_path / 'scores'}", "divergence=attention_transfer"]
    run = build_run(load_config(run_file, ["evaluation.sets=[]", *settings, original, f"output={tmp_path}/run"]))
    train(run, Observer())
    losses = [record["loss"] for record in metrics(tmp_path / "run")]
    assert len(losses) == 2 and all(0 < loss < 2 for loss in losses)


def test_a_transfer_from_another_model_is_refused_before_it_begins(run_file: Path) -> None:
    with pytest.raises(ConfigurationError, match="has 3 layers of width 32, and the student 2 of width 32"):
        made(run_file, *TRANSFER)


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
