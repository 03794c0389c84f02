"""Whole runs of a student with an adapter, under autocast, with gradient checkpointing and compiled."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from typer.testing import CliRunner

from tests.support.quick_run import StopAt, made, metrics
from tests.support.tiny_run import write_run_file
from tutelage.cli import app
from tutelage.errors import ConfigurationError, ModelError, RunInterrupted
from tutelage.models import LanguageModel, SharedBackbone, load_language_model, load_tokenizer
from tutelage.training import Observer, train

LORA = ["student.adapter.rank=4", "student.adapter.alpha=8", "student.adapter.learning_rate_factor=10"]


@pytest.mark.parametrize(("method", "share"), [("lora", 1.0), ("dora", 1.0), ("lora", 0.25)])
def test_an_adapter_is_resumed_to_the_same_bytes(tmp_path: Path, method: str, share: float) -> None:
    """With a reference that follows it, which is a second adapter, cut between two of its refreshes."""
    past = [
        "target.name=self_past",
        "target.past_weight=0.5",
        "reference.refresh_every=2",
        "steps=4",
        f"reference.share={share}",
    ]
    path = write_run_file(tmp_path)
    settings = [*LORA, f"student.adapter.method={method}", *past]
    run = made(path, *settings, f"output={tmp_path}/whole")
    assert isinstance(run.models.reference, SharedBackbone)
    base = {name: weight.clone() for name, weight in run.models.student.module.state_dict().items()}
    train(run, Observer())
    after = run.models.student.module.state_dict()
    changed = {name for name in base if not torch.equal(base[name], after[name])}
    assert changed == set(run.models.student.trainable.parameters())
    assert [record["learning_rate"] for record in metrics(tmp_path / "whole")][-1] < 1e-2
    assert run.learning.phases[0].optimizer.learning_rate == pytest.approx(1e-2)
    assert max(record["logprob_mismatch"] for record in metrics(tmp_path / "whole")) < 1e-4

    cut = [*settings, f"output={tmp_path}/cut"]
    with pytest.raises(RunInterrupted):
        train(made(path, *cut), StopAt(2))
    train(made(path, *cut, resume=True), Observer())
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
    folders = [tmp_path / name / "checkpoints/step-000004" for name in ("cut", "whole")]
    kept = [] if share == 1 else ["past.pt"]
    for name in ("adapter_model.safetensors", "adapter_config.json", "base.json", *kept):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
    assert not (folders[0] / "model.safetensors").exists()
    moments = torch.load(folders[0] / "optimizer.pt", weights_only=True)["state"]
    assert len(moments) == len(changed), "the optimizer holds the adapter only"


def test_a_checkpoint_is_exported_evaluated_and_taken_as_a_student(tmp_path: Path) -> None:
    path = write_run_file(tmp_path)
    train(made(path, *LORA, "steps=2", "policy=student"), Observer())
    checkpoint, commands = tmp_path / "run/checkpoints/step-000002", CliRunner()
    for model, place in ((checkpoint, "one"), (tmp_path / "run", "two")):
        done = commands.invoke(app, ["export", str(model), "--output", str(tmp_path / place)])
        assert done.exit_code == 0, done.output
    names = ("model.safetensors", "generation_config.json")
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in names)
    plain = LanguageModel(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "one"))
    adapted = load_language_model(str(checkpoint), load_tokenizer(str(checkpoint)))
    found, expected = (model.logits(model.hidden_packed([[5, 6, 7, 8]])).log_softmax(-1) for model in (plain, adapted))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert plain.module.generation_config.eos_token_id == [256, 258]

    few = ["--samples", "1", "--max-new-tokens", "4", "--limit", "2", "--device", "cpu"]
    done = commands.invoke(app, ["evaluate", str(checkpoint), "--task", str(tmp_path / "prompts.jsonl"), *few])
    assert done.exit_code == 0, done.output
    taken = ["--set", f"student={checkpoint}", "--set", "rollout.max_new_tokens=4", "--limit", "2"]
    done = commands.invoke(app, ["generate", str(path), str(tmp_path / "samples.jsonl"), *taken])
    assert done.exit_code == 0, done.output

    with pytest.raises(
        ConfigurationError, match=r"is an adapter, which then learns, and \[student\.adapter\] asks for something"
    ):
        made(path, *LORA, f"student={checkpoint}", f"output={tmp_path}/on")
    run = made(path, f"student={checkpoint}", "steps=2", "target.name=extrapolated", f"output={tmp_path}/on")
    train(run, Observer())
    assert json.loads((tmp_path / "on/checkpoints/step-000002/adapter_config.json").read_text())[
        "base_model_name_or_path"
    ] == str(tmp_path / "student")
    first = load_file(checkpoint / "adapter_model.safetensors")
    kept = run.models.reference
    assert isinstance(kept, SharedBackbone)
    assert torch.equal(
        kept.trainable_state()["model.layers.0.mlp.up_proj.lora_B.default.weight"],
        first["base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"],
    ), "the reference is the student that the run began with"


def test_a_changed_base_is_refused_on_resume(tmp_path: Path) -> None:
    path = write_run_file(tmp_path)
    with pytest.raises(RunInterrupted):
        train(made(path, *LORA, "steps=3"), StopAt(0))
    shutil.copy(tmp_path / "student/model.safetensors", tmp_path / "kept")
    weights = load_file(tmp_path / "student/model.safetensors")
    weights["model.norm.weight"] += 1
    from safetensors.torch import save_file

    save_file(weights, tmp_path / "student/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="was trained on other weights than"):
        made(path, *LORA, "steps=3", resume=True)
    shutil.copy(tmp_path / "kept", tmp_path / "student/model.safetensors")
    train(made(path, *LORA, "steps=3", resume=True), Observer())


def test_a_reference_without_a_path_is_the_base_itself(tmp_path: Path) -> None:
    """Step by step the losses of two runs agree: one shares the backbone, the other loads the base once more."""
    path, target = write_run_file(tmp_path), ["target.name=extrapolated", "steps=3"]
    shared = made(path, *LORA, *target)
    assert isinstance(shared.models.reference, SharedBackbone)
    train(shared, Observer())
    copied = made(path, *LORA, *target, f"reference={tmp_path}/student", f"output={tmp_path}/copied")
    assert not isinstance(copied.models.reference, SharedBackbone)
    train(copied, Observer())
    for mine, theirs in zip(metrics(tmp_path / "run"), metrics(tmp_path / "copied"), strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-6)


def test_gradient_checkpointing_changes_no_bit_and_autocast_stays_near(tmp_path: Path) -> None:
    path = write_run_file(tmp_path)
    for name, overrides in {
        "plain": [],
        "checkpointed": ["runtime.gradient_checkpointing=true"],
        "autocast": ["runtime.autocast=bfloat16"],
        "both": ["runtime.autocast=bfloat16", "runtime.gradient_checkpointing=true", "rollout.draft_length=1"],
    }.items():
        run = made(path, "steps=2", *overrides, f"output={tmp_path}/{name}")
        train(run, Observer())
        assert {weight.dtype for weight in run.models.student.module.parameters()} == {torch.float32}
    names = ("plain", "checkpointed", "autocast", "both")
    plain, checkpointed, autocast, both = (metrics(tmp_path / name) for name in names)
    weights = [(tmp_path / name / "checkpoints/step-000002/model.safetensors").read_bytes() for name in names[:2]]
    assert weights[0] == weights[1] and plain == checkpointed
    for record in (*autocast, *both):
        assert record["logprob_mismatch"] < 0.1
    assert autocast[0]["loss"] != plain[0]["loss"]
    assert autocast[0]["loss"] == pytest.approx(plain[0]["loss"], rel=0.5)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["student.quantization=4bit"], r"4-bit weights cannot learn"),
        (["student.quantization=4bit", *LORA], r"student\.quantization is '4bit' on cpu"),
        (["student.dtype=float64", "runtime.autocast=bfloat16"], r"weights that stay in float32"),
        (["student.adapter.ranks=3"], r"unknown configuration key 'student\.adapter\.ranks'.*student\.adapter\.rank\?"),
        (["student.adapter.method=qlora"], r"student\.adapter\.method is 'qlora'"),
        (["student.adapter.target_modules=['q_projection']"], r"student\.adapter\.target_modules does not fit"),
        (["student.adapter.method=dora", "runtime.compile=true"], r"runtime\.compile is on, .* DoRA"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_is_refused(tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises((ConfigurationError, ValueError), match=message):
        made(write_run_file(tmp_path), *overrides)
    assert not (tmp_path / "run").exists()
