"""Decoding from copies of the weights in the type of autocast's products gives autocast's numbers, to the last bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.support.adapters import adapted, shake
from tests.support.graph_agreement import answers
from tests.support.tiny_models import make_model
from tutelage.models import LanguageModel
from tutelage.models.narrowed import narrowed_bytes
from tutelage.policies import Student

PROMPTS = [[1, 2, 3, 4], [5], [6, 7, 8]]


def whole(name: str = "qwen3", **shape: object) -> LanguageModel:
    module = make_model(name, seed=4, dtype=torch.float32, initializer_range=0.1, stop_ids=7, **shape)  # type: ignore[arg-type]
    return LanguageModel(module, stop_ids=(7,), autocast=torch.bfloat16)


def with_adapter(method: str = "lora") -> LanguageModel:
    model = adapted(whole().module, method, rank=2, alpha=32)
    shake(model, size=0.1)
    model.stop_ids, model.autocast = (7,), torch.bfloat16
    return model


MODELS: dict[str, Callable[[], LanguageModel]] = {
    "tied": whole,
    "a head of its own": lambda: whole(tie=False),
    "biases": lambda: whole("llama", attention_bias=True, mlp_bias=True),
    "LoRA": with_adapter,
}
every_model = pytest.mark.parametrize("made", MODELS.values(), ids=MODELS.keys())


@torch.no_grad()
def decoded(model: LanguageModel) -> list[Tensor]:
    """Logits after prompts and two tokens more, and the cache."""
    cache = model.prefill(PROMPTS)
    tokens_BT, positions_BT = torch.tensor([[5, 6], [7, 8], [9, 9]]), torch.tensor([[4, 5], [1, 2], [3, 4]])
    return [model.logits(model.hidden_cached(tokens_BT, positions_BT, cache, 6)), *cache.tensors()]  # type: ignore[attr-defined]


@every_model
def test_the_numbers_of_autocast(made: Callable[[], LanguageModel]) -> None:
    model = made()
    model.enable_grad()
    expected = decoded(model)
    for _ in range(2):
        with model.weights_fixed():
            assert model._copies is None, "copies have no gradient"
            with torch.no_grad():
                assert model._forward is not model._own_forward
            found = decoded(model)
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
        with torch.no_grad():
            assert model._forward is model._own_forward


@every_model
def test_an_update_reaches_the_copies(made: Callable[[], LanguageModel]) -> None:
    model = made()
    with model.weights_fixed():
        before = decoded(model)
    narrowed = model._narrowed
    assert narrowed is not None
    places = [weight.data_ptr() for weight in narrowed.forward.decoder.parameters()]
    for weight in model.trainable.parameters().values():
        weight.data.mul_(1.2)
    with model.weights_fixed():
        after = decoded(model)
    assert not torch.equal(before[0], after[0])
    assert all(torch.equal(one, other) for one, other in zip(after, decoded(model), strict=True))
    assert [weight.data_ptr() for weight in narrowed.forward.decoder.parameters()] == places


@every_model
def test_only_the_weights_of_linear_layers_are_copied(made: Callable[[], LanguageModel]) -> None:
    model = made()
    own = {weight.data_ptr() for weight in model.module.parameters()}
    with model.weights_fixed():
        assert model._narrowed is not None
        parts = (model._narrowed.forward.decoder, model._narrowed.head)
        copies = [w for part in parts for w in part.parameters() if w.data_ptr() not in own]
    assert {copy.dtype for copy in copies} == {torch.bfloat16} and not any(copy.requires_grad for copy in copies)
    assert sum(copy.nbytes for copy in copies) == narrowed_bytes(model.module, torch.bfloat16)


def test_a_gradient_is_that_of_the_weights() -> None:
    model = whole()
    with model.weights_fixed():
        model.logits(model.hidden_packed(PROMPTS)).float().sum().backward()
    assert all(weight.grad is not None for weight in model.module.parameters())


def test_norms_of_dora_are_those_of_the_weights() -> None:
    """They are made of whole weights, which must not be rounded."""
    model = with_adapter("dora")
    with model.weights_fixed(), torch.no_grad():
        assert model._forward is model._own_forward and model._narrowed is None


def test_a_whole_rollout() -> None:
    """From the copies, and from the weights."""
    model = whole()
    found = answers(model, None, Student())
    assert model._narrowed is not None
    model._decoding_from_copies = lambda dtype: torch.no_grad()  # type: ignore[method-assign, assignment, return-value]
    expected = answers(model, None, Student())
    assert [rollout.response_tokens for rollout in found] == [rollout.response_tokens for rollout in expected]
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.behaviour_logprobs, other.behaviour_logprobs)


def test_captured_steps_read_the_copies() -> None:
    model = whole()
    found = []
    for name in (None, "graphed"):
        model.decode_step = name
        with model.weights_fixed():
            found.append(decoded(model)[0].float())
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0.02 * float(found[0].abs().max()))
