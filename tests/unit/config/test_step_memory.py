"""What a step takes is forecast from shapes; a micro-batch that fits is chosen, told, written down and kept."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.tiny_models import make_model
from tests.support.tiny_run import write_run_file
from tutelage.config import RunAssembly, RunConfig, build_run, load_config
from tutelage.config import assembly as assembly_module
from tutelage.config.step_memory import activation_bytes
from tutelage.errors import ConfigurationError
from tutelage.models import LanguageModel, attention
from tutelage.training import Observer, train

# --- what backward needs ---------------------------------------------------------------------------------------------


def kept_bytes(student: LanguageModel, sequences: list[list[int]]) -> int:
    """Bytes of all that autograd keeps of a forward, each once, weights and their narrow copies aside."""
    weights = [weight for weight in student.module.parameters() if weight.ndim == 2]
    shapes = {shape for weight in weights for shape in (weight.shape, weight.T.shape)}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.shape not in shapes:
            kept[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        student.hidden_packed(sequences)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.sweeps
@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=["plain", "autocast"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_activations_are_what_autograd_keeps(family: str, dtype: torch.dtype, autocast: torch.dtype | None) -> None:
    shape = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 6, "num_attention_heads": 8}
    student = LanguageModel(make_model(family, dtype=dtype, **shape, head_dim=16), autocast=autocast)
    student.enable_grad()
    sequences = [[1] * 150] * 4 + [[2] * 150] * 4
    layers = 6 / 7  # what is counted beside them is one layer on the way back
    forecast = layers * activation_bytes(student, sum(map(len, sequences)))
    assert 0.9 * forecast < kept_bytes(student, sequences) < 1.1 * forecast


def test_activations_where_keys_are_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "repeats_keys", lambda queries, is_masked: True)
    shape = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 6, "num_attention_heads": 8}
    student = LanguageModel(make_model("llama", dtype=torch.float32, **shape, head_dim=32))
    student.enable_grad()
    forecast = 6 / 7 * activation_bytes(student, 4 * 150, repeats_keys=True)
    assert 0.9 * forecast < kept_bytes(student, [[1] * 150] * 4) < 1.1 * forecast


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("heads", [(4, 8, 32, 32), (2, 8, 16, 32)], ids=str)
def test_activations_of_gated_delta_nets(heads: tuple[int, ...], dtype: torch.dtype) -> None:
    """Three of four layers, as these families have them; the plain form fills its last block up, here to 192 tokens."""
    names = ("linear_num_key_heads", "linear_num_value_heads", "linear_key_head_dim", "linear_value_head_dim")
    shape: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 4}
    layers = ["linear_attention"] * 3 + ["full_attention"]
    module = make_model("qwen3_5", dtype=dtype, **shape, layer_types=layers, **dict(zip(names, heads, strict=True)))
    student = LanguageModel(module)
    student.enable_grad()
    forecast = activation_bytes(student, 8 * 192) - activation_bytes(student, 8 * 192, checkpoints=True)
    stream = 4 * 8 * 192 * 64 * dtype.itemsize  # of which checkpoints keep all, and one layer
    assert 0.85 * (forecast + stream) < kept_bytes(student, [[1] * 192] * 8) < 1.15 * (forecast + stream)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", ["linear_qwen3", "linear_llama"])
@pytest.mark.parametrize("heads", [(4, 2, 16, 8), (8, 8, 16, 8), (4, 2, 32, 16)], ids=str)
def test_activations_of_linear_attention(heads: tuple[int, ...], family: str, dtype: torch.dtype) -> None:
    names = ("num_attention_heads", "num_key_value_heads", "head_dim", "linear_feature_size")
    shape: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 6}
    kinds = ["linear_attention"] * 6
    student = LanguageModel(
        make_model(family, dtype=dtype, **shape, layer_types=kinds, **dict(zip(names, heads, strict=True)))
    )
    student.enable_grad()
    forecast = activation_bytes(student, 4 * 600) * 6 / 7  # what is counted beside them is one layer on the way back
    assert 0.85 * forecast < kept_bytes(student, [[1] * 600] * 4) < 1.15 * forecast


def test_checkpoints_keep_the_stream_alone() -> None:
    student = LanguageModel(make_model(dtype=torch.float32, num_hidden_layers=6), checkpoints_gradient=True)
    student.enable_grad()
    stream = 6 * 600 * 32 * 4
    whole = activation_bytes(student, 600)
    assert activation_bytes(student, 600, checkpoints=True) == stream + whole / 7
    assert 0.9 * stream < kept_bytes(student, [[1] * 150] * 4) < 1.3 * stream


# --- the loss --------------------------------------------------------------------------------------------------------


def test_the_form_of_the_loss_decides_what_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_run_file(tmp_path)

    def update(*overrides: str) -> dict[str, int]:
        return RunAssembly(load_config(path, list(overrides))).step_memory().update(16_384)

    support, full = ["divergence.support=student_top_k"], ["divergence.support=full"]
    one_chunk = update(*support)
    assert "gradient of hidden states" not in one_chunk
    tiled = update(*support, "runtime.loss=tiled")
    asks_teacher = update(*full, "runtime.loss=tiled")
    assert asks_teacher["gradient of hidden states"] == 2 * tiled["gradient of hidden states"], "the teacher's states"
    assert update(*full, "runtime.loss=recomputed")["logits"] < asks_teacher["logits"]
    # Widest of all phases.
    phases = 'phase=[{steps=1, divergence={support="student_top_k"}}, {divergence={support="full"}}]'
    assert (
        update("runtime.loss=tiled", phases)["gradient of hidden states"] == asks_teacher["gradient of hidden states"]
    )


# --- the micro-batch that is chosen ----------------------------------------------------------------------------------


def left_out(config: RunConfig) -> RunConfig:
    """As it is on a machine with a GPU."""
    runtime = config.runtime.model_copy()
    runtime.__dict__["micro_batch_tokens"] = None
    return config.model_copy(update={"runtime": runtime})


def recorded(folder: Path) -> Any:
    return tomllib.loads((folder / "run" / "config.toml").read_text())["runtime"]["micro_batch_tokens"]


@pytest.mark.parametrize("overrides", [[], ["runtime.micro_batch_tokens=auto"]])
def test_without_a_gpu_it_is_what_it_always_was(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_run_file(tmp_path)
    runtime = load_config(path, overrides).runtime
    assert (runtime.micro_batch_tokens, runtime.names_micro_batch) == (16_384, False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert load_config(path, overrides).runtime.micro_batch_tokens == 16_384, "runtime.device is the CPU"
    assert load_config(path, [*overrides, "runtime.device=cuda"]).runtime.micro_batch_tokens is None
    named = load_config(path, ["runtime.device=cuda", "runtime.micro_batch_tokens=100"]).runtime
    assert (named.micro_batch_tokens, named.names_micro_batch) == (100, True)
    with pytest.raises(ConfigurationError, match="runtime.micro_batch_tokens is 0"):
        load_config(path, ["runtime.micro_batch_tokens=0"])


def test_it_is_the_most_that_fits(tmp_path: Path) -> None:
    overrides = ["rollout.prompts_per_step=12", "rollout.samples_per_prompt=200"]
    parts = RunAssembly(load_config(write_run_file(tmp_path), overrides)).step_memory()
    needed = {tokens: sum(parts.update(tokens).values()) for tokens in (1024, 4096, 8192, 16_384)}
    assert sorted(needed.values()) == list(needed.values()) and len(set(needed.values())) == 4
    for tokens, num_bytes in needed.items():
        assert parts.fitting_micro_batch(int(num_bytes / 0.8) + 2) == tokens
    assert parts.fitting_micro_batch(1) == 1024
    assert parts.fitting_micro_batch(2**50) == 16_384
    assert parts.fitting_micro_batch(int(needed[8192] / 0.8) - 2) == 4096


@pytest.mark.runs
def test_it_is_told_written_down_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory that is free when a run is resumed changes nothing; nor does a run file of its own folder."""
    path = write_run_file(tmp_path)
    config = left_out(load_config(path, ["steps=2", "evaluation.sets=[]"]))
    monkeypatch.setattr(assembly_module, "free_bytes", lambda device: 2**20)
    run = build_run(config)
    assert run.learning.micro_batch_tokens == 1024
    assert any("runtime.micro_batch_tokens is left out: 1024" in message for message in run.messages)
    train(run, Observer())
    assert recorded(tmp_path) == 1024

    monkeypatch.setattr(assembly_module, "free_bytes", lambda device: 2**50)
    for again in (
        left_out(load_config(path, ["steps=3", "evaluation.sets=[]"])),
        load_config(path, ["steps=4", "evaluation.sets=[]"]),  # a machine without a GPU
        load_config(tmp_path / "run" / "config.toml", ["steps=5"]),
    ):
        run = build_run(again, resume=True)
        assert run.learning.micro_batch_tokens == 1024
        assert not any("micro_batch_tokens" in message for message in run.messages)
        train(run, Observer())
        assert recorded(tmp_path) == 1024
    with pytest.raises(ConfigurationError, match="micro_batch_tokens is 2048, was 1024"):
        build_run(load_config(path, ["steps=5", "runtime.micro_batch_tokens=2048"]), resume=True)
