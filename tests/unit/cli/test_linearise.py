"""`tutelage linearise`: a folder that opens, words about what is new, one line for what cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from typer.testing import CliRunner

from tests.support.tiny_run import save_pair
from tutelage.cli import app
from tutelage.errors import TutelageError
from tutelage.models import LanguageModel, check_servable, load_language_model, load_tokenizer


def test_a_model_is_written_and_described(tmp_path: Path) -> None:
    student, _ = save_pair(tmp_path)
    done = CliRunner().invoke(
        app,
        ["linearise", str(student), "--layers", "1", "--kernel", "based", "--feature-size", "4", "--output",
         str(tmp_path / "linear")],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "layers 1 (based, 4 entries of a key)" in done.output and "layers 0" in done.output
    assert "q_feature_proj.weight, k_feature_proj.weight" in done.output
    assert not list(tmp_path.glob(".writing*"))
    model = load_language_model(str(tmp_path / "linear"), load_tokenizer(str(tmp_path / "linear")))
    original = load_language_model(str(student), load_tokenizer(str(student)))
    check_servable(model)
    assert isinstance(model, LanguageModel) and model.stop_ids == original.stop_ids
    assert type(model.module).__name__ == "LinearQwen3ForCausalLM" and model.cache_bytes_per_row > 0


def test_what_cannot_be_is_one_line(tmp_path: Path) -> None:
    student, _ = save_pair(tmp_path)
    gemma = transformers.GemmaForCausalLM(
        transformers.GemmaConfig(
            vocab_size=264, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, head_dim=8,
        )
    )  # fmt: skip
    gemma.save_pretrained(tmp_path / "gemma")
    load_tokenizer(str(student)).save_pretrained(tmp_path / "gemma")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(f'{{"base_model_name_or_path": "{student}", "peft_type": "LORA"}}')
    new = str(tmp_path / "new")
    for arguments, message in (
        ([str(student), "--layers", "7", "--output", new], "names layer 7, but the model has 2"),
        ([str(student), "--layers", "1", "--output", str(student)], "already exists"),
        ([str(tmp_path / "gemma"), "--layers", "0", "--output", new], "GemmaForCausalLM cannot be linearised"),
        ([str(adapter), "--layers", "0", "--output", new], "is an adapter"),
        ([str(tmp_path / "nothing"), "--layers", "0", "--output", new], "does not exist"),
    ):
        done = CliRunner().invoke(app, ["linearise", *arguments])
        assert isinstance(done.exception, TutelageError) and message in str(done.exception)
        assert "\n" not in str(done.exception)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_weights_are_written_in_the_type_asked_for(tmp_path: Path, dtype: str) -> None:
    student, _ = save_pair(tmp_path)
    arguments = ["linearise", str(student), "--layers", "all", "--dtype", dtype, "--output", str(tmp_path / "linear")]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    module = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "linear", dtype="auto")
    assert module.dtype == getattr(torch, dtype)
