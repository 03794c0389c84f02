"""Attention of many texts: heads that share keys with and without repeating these, and kernels that plan left out."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.support.tiny_models import make_model
from tutelage.models import LanguageModel, attention
from tutelage.models.attention import attend, repeats_keys, without_plans

CUDA = torch.device("cuda")


@pytest.mark.parametrize("is_masked", [False, True])
def test_repeated_keys_change_nothing(is_masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values and gradients, against softmax written out."""
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(2, 6, 5, 8, dtype=torch.float64, generator=generator, requires_grad=True)
    keys, values = (
        torch.randn(2, 2, 5, 8, dtype=torch.float64, generator=generator, requires_grad=True) for _ in range(2)
    )
    allowed_b1TS = torch.ones(5, 5).tril().bool().expand(2, 1, 5, 5).contiguous()
    if is_masked:
        allowed_b1TS[1, :, :, 0] = torch.tensor([True, False, False, True, False])
    scores = 0.3 * torch.einsum("bhgtd,bhsd->bhgts", queries.unflatten(1, (2, 3)), keys)
    weights = scores.masked_fill(~allowed_b1TS[:, :, None], -torch.inf).softmax(-1)
    expected = torch.einsum("bhgts,bhsd->bhgtd", weights, values).flatten(1, 2)
    inputs = (queries, keys, values)
    wanted = torch.autograd.grad(expected.square().sum(), inputs)
    for repeats in (False, True):
        monkeypatch.setattr(attention, "repeats_keys", lambda _, is_masked, answer=repeats: answer)
        found = attend(*inputs, allowed_b1TS if is_masked else None, 0.3)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        for gradient, own in zip(torch.autograd.grad(found.square().sum(), inputs), wanted, strict=True):
            torch.testing.assert_close(gradient, own, rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("device", "dtype", "is_masked", "expected"),
    [
        ("cpu", torch.float32, True, False),
        ("cuda", torch.bfloat16, False, False),
        ("cuda", torch.bfloat16, True, True),
        ("cuda", torch.float32, False, True),
    ],
)
def test_when_keys_are_repeated(
    device: str, dtype: torch.dtype, is_masked: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries: Any = SimpleNamespace(device=torch.device(device), dtype=dtype)
    assert repeats_keys(queries, is_masked=is_masked) == expected
    if device == "cuda" and not is_masked:
        # `torch.autocast` would switch itself off where there is no CUDA.
        monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: kind == "cuda")
        assert not repeats_keys(queries, is_masked=False)


@pytest.mark.parametrize("before", [True, False])
def test_planning_kernels_are_back_afterwards(before: bool) -> None:
    is_on, was_on = torch.backends.cuda.cudnn_sdp_enabled, torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(before)
    try:
        with without_plans(torch.device("cpu")):
            assert is_on() == before
        with pytest.raises(KeyError), without_plans(CUDA):
            assert not is_on()
            raise KeyError
        assert is_on() == before
    finally:
        torch.backends.cuda.enable_cudnn_sdp(was_on)


@pytest.mark.parametrize("is_fast", [True, False], ids=["ours", "the module's"])
def test_whatever_meets_new_sizes_leaves_them_out(is_fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefill, eager steps, reading, and layers that are computed again on the way back."""
    seen: list[bool] = []
    original = torch.nn.functional.scaled_dot_product_attention

    def watched(*inputs: Any, **settings: Any) -> torch.Tensor:
        seen.append(torch.backends.cuda.cudnn_sdp_enabled())
        return original(*inputs, **settings)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    for place in ("attention", "module_forward", "steps.eager"):
        monkeypatch.setattr(f"tutelage.models.{place}.without_plans", lambda device: without_plans(CUDA))
    module = make_model("qwen3", stop_ids=7)
    model = LanguageModel(module, checkpoints_gradient=True, decode_step="eager", fast_forward=is_fast)
    with torch.no_grad():
        cache = model.prefill([[1, 2, 3], [4, 5]])
        model.hidden_cached(torch.tensor([[6], [6]]), torch.tensor([[3], [2]]), cache, 4)
    num_without_gradient = len(seen)
    model.enable_grad()
    model.hidden_packed([[1, 2, 3], [4, 5]]).sum().backward()
    assert num_without_gradient and len(seen) >= num_without_gradient + 2 * module.config.num_hidden_layers
    assert not any(seen) and torch.backends.cuda.cudnn_sdp_enabled()
