"""Linear attention: one layer in three forms, its state, and what pads or comes later."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.support.tiny_models import make_model
from tutelage.models.linear_attention import KERNELS, Based, Kernel, LinearAttention, ReBased, read, step
from tutelage.models.linear_attention.attention import EPSILON, added

each_kernel = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
each_family = pytest.mark.parametrize("family", ["linear_qwen3", "linear_llama"])  # ReBased, Based


def drawn(num_tokens: int = 11, size: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of 2 rows, 2 key heads of 3 query heads each."""
    torch.manual_seed(0)
    queries = torch.randn(2, 2, 3, num_tokens, size, dtype=torch.float64)
    keys = torch.randn(2, 2, num_tokens, size, dtype=torch.float64)
    values = torch.cat((torch.randn(2, 2, num_tokens, 4), torch.ones(2, 2, num_tokens, 1)), dim=-1).double()
    return queries, keys, values


@each_kernel
def test_the_three_forms_are_one(kernel: Kernel) -> None:
    """And a form may go on where another one stopped."""
    queries, keys, values = drawn()
    whole = read(kernel, queries, keys, values)
    state, outputs = None, []
    for place in range(11):
        output, state = step(kernel, queries[..., place, :], keys[:, :, place], values[:, :, place], state)
        outputs.append(output)
    close = {"rtol": 1e-9, "atol": 1e-10}
    torch.testing.assert_close(torch.stack(outputs, dim=3), whole, **close)
    for block_tokens in (1, 3, 10):
        torch.testing.assert_close(read(kernel, queries, keys, values, block_tokens=block_tokens), whole, **close)
    begun = added(kernel, keys[:, :, :4], values[:, :, :4], None)
    rest = read(kernel, queries[..., 4:, :], keys[:, :, 4:], values[:, :, 4:], begun, block_tokens=3)
    torch.testing.assert_close(rest, whole[..., 4:, :], **close)
    assert state is not None
    torch.testing.assert_close(added(kernel, keys[:, :, 4:], values[:, :, 4:], begun), state, **close)


@each_kernel
def test_outputs_are_means_of_earlier_values(kernel: Kernel) -> None:
    """Rows of weights are at least 0 and sum to 1; a later token changes nothing before it."""
    queries, keys, values = drawn()
    identity = torch.eye(11, dtype=torch.float64).expand(2, 2, 11, 11)
    weights = read(kernel, queries, keys, torch.cat((identity, values[..., -1:]), dim=-1))
    assert weights.min() >= 0 and torch.equal(weights, weights.tril())
    assert ((weights.sum(-1) > 0.9) & (weights.sum(-1) <= 1)).all(), "1, but for epsilon beside a small denominator"
    expected = weights @ values[:, :, None, :, :-1]
    torch.testing.assert_close(read(kernel, queries, keys, values), expected)


def test_numbers_worked_by_hand() -> None:
    """Three tokens, two entries: squares of products over 2, and Taylor's polynomial of them."""
    q = torch.tensor([[1, 0], [1, 2], [0.5, -1]], dtype=torch.float64)[None, None, None]
    k = torch.tensor([[1, 1], [2, 0], [-1, 1]], dtype=torch.float64)[None, None]
    v = torch.tensor([[1, 0, 1], [0, 1, 1], [2, 2, 1]], dtype=torch.float64)[None, None]
    rebased, based = read(ReBased(), q, k, v)[0, 0, 0], read(Based(), q, k, v)[0, 0, 0]
    sums = torch.tensor([[0.5, 0, 0.5], [4.5, 2, 6.5], [0.125 + 2.25, 0.5 + 2.25, 1.75]], dtype=torch.float64)
    torch.testing.assert_close(rebased, sums[:, :2] / (sums[:, 2:] + EPSILON), rtol=1e-9, atol=0)
    torch.testing.assert_close(based[2], torch.tensor([0.540620, 0.934623], dtype=torch.float64), rtol=1e-4, atol=0)


def test_a_token_that_gives_no_weight_gets_zero_in_every_form() -> None:
    """The denominator is 0 whole, and about -1e-8 through a float32 state if it were not held."""
    torch.manual_seed(0)
    keys, values = torch.randn(1, 1, 64, 4), torch.cat((torch.randn(1, 1, 64, 3), torch.ones(1, 1, 64, 1)), dim=-1)
    queries = torch.zeros(1, 1, 1, 64, 4)
    assert read(ReBased(), queries, keys, values).abs().max() == 0
    output, _ = step(ReBased(), queries[..., -1, :], keys[:, :, -1], values[:, :, -1], None)
    assert output.abs().max() == 0


def layer(family: str) -> LinearAttention:
    torch.manual_seed(1)
    mixer: LinearAttention = make_model(family).model.layers[0].linear_attn
    for norm in (mixer.q_feature_norm, mixer.k_feature_norm):
        if norm is not None:  # a scale and a shift as they are after training
            torch.nn.init.normal_(norm.weight, 0.5)
            torch.nn.init.normal_(norm.bias)
    return mixer


@each_family
def test_a_token_that_pads_is_not_there(family: str) -> None:
    """Left or right of the others: their outputs, and positions, are those without it."""
    mixer = layer(family)
    hidden = torch.randn(1, 6, 32, dtype=torch.float64)
    pads = torch.randn(1, 3, 32, dtype=torch.float64)
    expected = mixer(hidden)
    left = mixer(torch.cat((pads, hidden), 1), attention_mask=torch.tensor([[0] * 3 + [1] * 6]))
    right = mixer(torch.cat((hidden, pads), 1))
    torch.testing.assert_close(left[:, 3:], expected)
    torch.testing.assert_close(right[:, :6], expected)


def test_gradients_are_right_in_every_form() -> None:
    queries, keys, values = (each[:1, :1, ..., :5, :].requires_grad_() for each in drawn(5, 3))
    for block_tokens in (2, 5):
        torch.autograd.gradcheck(
            lambda *given, tokens=block_tokens: read(ReBased(), *given, block_tokens=tokens), (queries, keys, values)
        )


def test_the_sizes_of_both_kernels() -> None:
    """ReBased has a scale and a shift for each entry of all heads of queries, and of keys."""
    rebased, based = (
        sum(p.numel() for p in make_model("linear_qwen3", linear_kernel=kernel).parameters())
        for kernel in ("rebased", "based")
    )
    assert rebased - based == 2 * 6 * (4 + 2)


@each_family
def test_sums_are_in_float32_at_least(family: str) -> None:
    seen: list[torch.dtype] = []

    class Cache:
        def get_conv_state(self, layer_idx: int) -> None: ...
        def get_recurrent_state(self, layer_idx: int) -> None: ...
        def update_conv_state(self, count: Tensor, layer_idx: int, conv_kernel_size: int) -> None: ...

        def update_recurrent_state(self, state: Tensor, layer_idx: int) -> None:
            seen.append(state.dtype)

    module = make_model(family, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        output = module.model.layers[0].linear_attn(torch.randn(2, 3, 32), cache_params=Cache())
    module.model.layers[0].linear_attn(torch.randn(2, 1, 32, dtype=torch.bfloat16), cache_params=Cache())
    assert seen == [torch.float32] * 2 and output.isfinite().all()
