"""Whole runs of models with recurrent layers: as student, teacher and reference, resumed, with an adapter, examined."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from typer.testing import CliRunner

from tests.support.quick_run import check_resumed, made, metrics
from tests.support.tiny_models import GATED_DELTA_NET, SHAPE, make_model
from tests.support.tiny_run import make_tokenizer, write_run_file
from tutelage.cli import app
from tutelage.models import load_language_model, load_tokenizer
from tutelage.training import Observer, train

OPD, TRB = ["policy=student"], ["policy.name=trust_region", "policy.kl_radius=0.05"]
SMALL = {"initializer_range": 0.1, "max_position_embeddings": 2048}


def save(folder: Path, module: Any, eos: str = "<|endoftext|>") -> Path:
    module.save_pretrained(folder)
    make_tokenizer(eos=eos).save_pretrained(folder)
    return folder


def hybrid(folder: Path, architecture: str, seed: int, stop_ids: int | list[int] = 256) -> Path:
    module = make_model(architecture, vocab_size=264, stop_ids=stop_ids, seed=seed, dtype=torch.float32, **SMALL)
    return save(folder, module, "<|endoftext|>" if stop_ids == 256 else "<|im_end|>")


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    """A run of a Qwen3.5 student with a Qwen3-Next teacher."""
    path = write_run_file(tmp_path)
    models = {
        "student": hybrid(tmp_path / "qwen3_5", "qwen3_5", 1),
        "teacher": hybrid(tmp_path / "qwen3_next", "qwen3_next", 2, [258, 256]),
    }
    text = path.read_text()
    for role, folder in models.items():
        text = text.replace(f'{role} = "{tmp_path / role}"', f'{role} = "{folder}"')
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("method", "reference"),
    [
        (OPD, []),
        (TRB, []),
        (TRB, ["target.name=self_past", "target.past_weight=0.5", "reference.refresh_every=2"]),
        ([*TRB, "student.adapter.rank=4"], []),
    ],
    ids=["OPD", "TRB", "TRB with a reference", "TRB with an adapter"],
)
def test_a_run_is_resumed_to_the_same_bytes(
    run_file: Path, tmp_path: Path, method: list[str], reference: list[str]
) -> None:
    settings = ["steps=4", *method, *reference]
    run = made(run_file, *settings, f"output={tmp_path}/whole")
    train(run, Observer())
    whole = metrics(tmp_path / "whole")
    assert max(record["logprob_mismatch"] for record in whole) < 1e-4, "rollout and update see one distribution"
    assert whole[-1]["loss"] != whole[0]["loss"]
    kept = "adapter_model.safetensors" if "student.adapter.rank=4" in method else "model.safetensors"
    names = [f"checkpoints/step-000004/{name}" for name in (kept, "optimizer.pt")]
    check_resumed(run_file, tmp_path / "cut", settings, 2, tmp_path / "whole", names)
    if kept.startswith("adapter"):
        learned = {name.split(".")[-4] for name in run.models.student.trainable.parameters()}
        assert learned >= {"in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "out_proj", "q_proj", "down_proj"}


def test_drafts_and_lock_step_decode_the_same_law(run_file: Path, tmp_path: Path) -> None:
    """Every round is taken back to what stood, and rollout and update agree."""
    for length in ("1", "4", "auto"):
        folder = tmp_path / length
        train(made(run_file, *TRB, "steps=2", f"rollout.draft_length={length}", f"output={folder}"), Observer())
        assert max(record["logprob_mismatch"] for record in metrics(folder)) < 1e-4


def test_doctor_finds_nothing_and_tells_states_apart(run_file: Path) -> None:
    done = CliRunner().invoke(app, ["doctor", str(run_file), "--set", "rollout.max_new_tokens=6"])
    errors = [line for line in done.output.splitlines() if line.startswith("error")]
    assert all(line.startswith("error   pass@1") for line in errors), done.output  # random models solve nothing
    assert (
        "1 of 2 layers of the student, 1 of 2 layers of the teacher; sequences of an update are padded, in plain "
        "PyTorch: flash-linear-attention and causal-conv1d cannot be imported"
    ) in " ".join(done.output.split())
    assert "own teacher: the student learning from itself" in done.output and "+ states 0." in done.output, done.output


def vision_language(folder: Path, seed: int) -> Path:
    """A Qwen3.5 as it is released: the text model is a part of it, under other names."""
    text = {**SHAPE, **GATED_DELTA_NET, **SMALL, "vocab_size": 264, "eos_token_id": 256, "tie_word_embeddings": True}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32}
    config = transformers.Qwen3_5Config(text_config=text, vision_config=vision, tie_word_embeddings=True)
    torch.manual_seed(seed)
    return save(folder, transformers.Qwen3_5ForConditionalGeneration(config).eval())


def test_the_text_part_of_a_vision_language_checkpoint_is_served(tmp_path: Path) -> None:
    """Its weights are under other names, and what is saved is a text model."""
    folder = vision_language(tmp_path / "model", 0)
    whole = transformers.Qwen3_5ForConditionalGeneration.from_pretrained(folder)
    model = load_language_model(str(folder), load_tokenizer(str(folder)))
    tokens = [5, 6, 7, 8, 9]
    expected = whole(input_ids=torch.tensor([tokens])).logits[0]
    torch.testing.assert_close(model.logits(model.hidden_packed([tokens])), expected, rtol=1e-4, atol=1e-4)
    assert model.context_length == 2048 and model.cache_bytes_per_row > 0
    assert json.loads((folder / "config.json").read_text())["model_type"] == "qwen3_5"


@pytest.mark.runs
@pytest.mark.parametrize("adapter", [[], ["student.adapter.rank=4"]], ids=["all weights", "adapter"])
def test_vision_language_checkpoints_are_student_teacher_and_reference_and_read_back(
    tmp_path: Path, adapter: list[str]
) -> None:
    path = write_run_file(tmp_path)
    for seed, role in enumerate(("student", "teacher")):
        vision_language(tmp_path / role, seed)
    folder = tmp_path / "out"
    with_reference = [*TRB, "target.name=self_past", "target.past_weight=0.5", "reference.refresh_every=2"]
    run = made(path, *with_reference, *adapter, "steps=2", f"output={folder}")
    train(run, Observer())
    assert max(record["logprob_mismatch"] for record in metrics(folder)) < 1e-4
    saved = folder / "checkpoints/step-000002"
    tokens = [5, 6, 7, 8, 9]
    expected = run.models.student.logits(run.models.student.hidden_packed([tokens]))
    kept = saved
    if adapter:
        assert json.loads((saved / "adapter_config.json").read_text())["base_model_name_or_path"]
        kept = tmp_path / "merged"
        done = CliRunner().invoke(app, ["export", str(saved), "--output", str(kept)])
        assert done.exit_code == 0, done.output
    assert json.loads((kept / "config.json").read_text())["model_type"] == "qwen3_5_text"
    alone = transformers.AutoModelForCausalLM.from_pretrained(kept)
    assert type(alone) is transformers.Qwen3_5ForCausalLM
    torch.testing.assert_close(alone(input_ids=torch.tensor([tokens])).logits[0], expected, rtol=1e-4, atol=1e-4)
    again = load_language_model(str(saved), load_tokenizer(str(saved)))
    torch.testing.assert_close(again.logits(again.hidden_packed([tokens])), expected, rtol=1e-4, atol=1e-4)
