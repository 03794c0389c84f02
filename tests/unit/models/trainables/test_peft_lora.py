"""Adapters: the base stays, a fresh one changes nothing, files open elsewhere, merging keeps the distribution."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.adapters import SEQUENCES, adapted, each_method, loaded, logprobs, shake, train_a_little
from tests.support.tiny_models import make_model
from tutelage.errors import ConfigurationError
from tutelage.models import (
    AdapterSettings,
    LanguageModel,
    reference_snapshot,
    save_for_serving,
)
from tutelage.models.trainables import AllWeights


@each_method
@pytest.mark.parametrize("architecture", ["qwen3", "llama", "gemma"])
def test_only_the_adapter_learns_and_merging_keeps_what_it_learned(architecture: str, method: str) -> None:
    module = make_model(architecture, dtype=torch.float32, initializer_range=0.1)
    before = logprobs(LanguageModel(module))
    base = {name: weight.clone() for name, weight in module.state_dict().items()}
    model = adapted(module, method)
    assert torch.equal(logprobs(model), before), "a fresh adapter changes no bit"
    assert model.uses_fast_forward == (architecture != "gemma")

    train_a_little(model)
    learned = logprobs(model)
    assert float((learned - before).abs().max()) > 1e-3
    for name, weight in module.state_dict().items():
        if "lora_" not in name:
            assert torch.equal(weight, base[name.replace(".base_layer", "")]), name
    assert {name for name, weight in module.named_parameters() if weight.requires_grad} == set(
        model.trainable.parameters()
    )

    merged = LanguageModel(model.trainable.merged())
    assert {name for name, _ in merged.module.named_parameters()} == {name for name in base if name != "lm_head.weight"}
    assert float((logprobs(merged) - learned).abs().max()) < 1e-5


@each_method
def test_our_own_forward_sees_the_adapter_as_the_modules_does(method: str) -> None:
    model = adapted(make_model("qwen3"), method)
    shake(model)
    plain = LanguageModel(model.module, fast_forward=False)
    assert model.uses_fast_forward
    torch.testing.assert_close(logprobs(model), logprobs(plain), rtol=1e-9, atol=1e-9)
    with torch.no_grad(), model.weights_fixed():
        cache = model.prefill([[1, 2, 3]])
        tokens, places = torch.tensor([[4, 8]]), torch.tensor([[3, 4]])
        cached = model.logits(model.hidden_cached(tokens, places, cache, 5)).log_softmax(-1)
    torch.testing.assert_close(cached[0], logprobs(model)[-2:], rtol=1e-9, atol=1e-9)


def test_the_gradient_of_an_adapter_is_the_weights_own_by_the_chain_rule() -> None:
    """W + s B A: dL/dB = s G A^T and dL/dA = s B^T G, with G = dL/dW of the merged weights."""
    model = adapted(make_model("qwen3"), "rslora")
    shake(model)
    logits = model.logits(model.hidden_packed(SEQUENCES))
    logits.log_softmax(-1)[:, 3].mean().backward()
    found = {
        name: weight.grad.clone() for name, weight in model.trainable.parameters().items() if weight.grad is not None
    }
    weights = {name: weight.detach().clone() for name, weight in model.trainable.parameters().items()}

    merged = LanguageModel(model.trainable.merged())
    merged.module.requires_grad_(True)
    merged.logits(merged.hidden_packed(SEQUENCES)).log_softmax(-1)[:, 3].mean().backward()
    scale = 8 / math.sqrt(4)
    assert len(found) == 2 * 7 * 2
    for name, weight in merged.module.named_parameters():
        down, up = (f"{name.removesuffix('.weight')}.lora_{part}.default.weight" for part in "AB")
        if down in weights:
            assert weight.grad is not None
            torch.testing.assert_close(found[up], scale * weight.grad @ weights[down].T)
            torch.testing.assert_close(found[down], scale * weights[up].T @ weight.grad)


@each_method
def test_an_reference_snapshot_shares_the_backbone_and_keeps_a_graph_whole(method: str) -> None:
    model = adapted(make_model("llama"), method)
    first = reference_snapshot(model)
    base = logprobs(first)
    shake(model)
    assert first.module is model.module and torch.equal(logprobs(first), base)

    def gradients(is_read_meanwhile: bool) -> dict[str, torch.Tensor]:
        model.module.zero_grad()
        loss = model.logits(model.hidden_packed(SEQUENCES)).log_softmax(-1)[:, 3].mean()
        if is_read_meanwhile:
            assert not first.hidden_packed(SEQUENCES).requires_grad
        loss.backward()
        return {name: weight.grad for name, weight in model.module.named_parameters() if weight.grad is not None}

    expected, found = gradients(False), gradients(True)
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())
    first.load_trainable_state(model.trainable_state())
    assert torch.equal(logprobs(first), logprobs(model))
    shake(model, seed=1)
    assert not torch.equal(logprobs(first), logprobs(model)), "it was a copy"


def test_norms_are_kept_only_while_weights_are_fixed() -> None:
    model = adapted(make_model("qwen3"), "dora")
    shake(model)
    with model.weights_fixed():
        fixed = logprobs(model)
    assert torch.equal(fixed, logprobs(model))
    shake(model, seed=1)
    with model.weights_fixed():
        again = logprobs(model)
    assert not torch.equal(again, fixed) and torch.equal(again, logprobs(model))


@each_method
def test_weights_are_merged_into_copies_and_the_student_learns_on(tmp_path: Path, base: str, method: Any) -> None:
    model = loaded(base, trainable=AdapterSettings(method, 4, 8))
    shake(model)
    before, state = logprobs(model), {name: weight.clone() for name, weight in model.module.state_dict().items()}
    model.module.save_pretrained(tmp_path / "plain", state_dict=model.trainable.merged_weights())
    model.tokenizer.save_pretrained(tmp_path / "plain")
    assert torch.equal(logprobs(model), before)
    assert all(torch.equal(weight, state[name]) for name, weight in model.module.state_dict().items())
    plain = loaded(str(tmp_path / "plain"))
    assert isinstance(plain.trainable, AllWeights) and float((logprobs(plain) - before).abs().max()) < 1e-5
    save_for_serving(model, tmp_path / "untied")
    assert torch.equal(logprobs(loaded(str(tmp_path / "untied"))), logprobs(plain))
    assert float((logprobs(plain) - logprobs(loaded(base))).abs().max()) > 1e-3


def test_the_seed_decides_a_fresh_adapter_and_nobody_elses_numbers(base: str) -> None:
    torch.manual_seed(5)
    first, same, other = (loaded(base, trainable=AdapterSettings(), seed=seed).trainable_state() for seed in (1, 1, 2))
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_a_backbone_in_bfloat16_keeps_its_adapter_in_float32(base: str) -> None:
    model = loaded(base, dtype="bfloat16", trainable=AdapterSettings())
    assert {weight.dtype for weight in model.trainable_state().values()} == {torch.float32}
    assert logprobs(model).dtype == torch.bfloat16


@pytest.mark.parametrize(("field", "value"), [("rank", 0), ("alpha", 0), ("learning_rate_factor", float("inf"))])
def test_numbers_that_cannot_work_are_refused(field: str, value: float) -> None:
    with pytest.raises(ConfigurationError, match=f"student.adapter.{field} is"):
        AdapterSettings(**{field: value})
