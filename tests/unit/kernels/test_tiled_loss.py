"""Tiles against the naive form: whole logits, autograd. Axis letters as in `kernels.tiles`."""

from __future__ import annotations

import math
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.contracts.test_divergences import MEMBERS, WITH_FROZEN_WEIGHT
from tests.support.tiled_worlds import (
    MERGED,
    PADDED,
    PLAIN,
    TILINGS,
    D,
    N,
    V,
    World,
    assert_same,
    both_on_support,
    learned,
    naive_full,
    sampled,
    sides,
    tiled_full,
    whole,
    world,
)
from tutelage.distributions import gather_logprobs, normalise
from tutelage.divergences import Divergence, ForwardKL, JensenShannon, ReverseKL
from tutelage.kernels import (
    FullDivergence,
    Head,
    Tiling,
    tiled_full_loss,
    tiled_support_loss,
)
from tutelage.models import Vocabulary

LOCAL = [member for member in MEMBERS if member.is_sum_over_events]
WHOLE_ROWS = Tiling(5, V)


@pytest.mark.sweeps
@pytest.mark.parametrize("tiling", TILINGS, ids=str)
@pytest.mark.parametrize("divergence", LOCAL, ids=repr)
def test_every_sum_over_events_on_the_whole_vocabulary(divergence: Divergence, tiling: Tiling) -> None:
    """Merged stops, padding ids, a bias, a token without weight."""
    for vocabulary in (MERGED, PLAIN):
        here = world(vocabulary)
        assert_same(tiled_full(here, divergence, tiling), naive_full(here, divergence), 1e-10)


@pytest.mark.parametrize("divergence", [ReverseKL(), ForwardKL(), JensenShannon()], ids=repr)
@pytest.mark.parametrize("tiling", TILINGS, ids=str)
def test_with_soft_capped_logits(divergence: Divergence, tiling: Tiling) -> None:
    here = world(softcap=2.0)
    assert_same(tiled_full(here, divergence, tiling), naive_full(here, divergence), 1e-10)


@pytest.mark.parametrize(
    "divergence", [m for m in MEMBERS + WITH_FROZEN_WEIGHT if m.tokens_per_group is None], ids=repr
)
def test_every_member_where_a_tile_has_the_whole_vocabulary(divergence: Divergence) -> None:
    here = world()
    assert_same(tiled_full(here, divergence, WHOLE_ROWS), naive_full(here, divergence), 1e-10)


@pytest.mark.parametrize("divergence", LOCAL, ids=repr)
def test_float32(divergence: Divergence) -> None:
    here = world(dtype=torch.float32)
    for tiling in TILINGS:
        assert_same(tiled_full(here, divergence, tiling), naive_full(here, divergence), 1e-5)


def test_logits_far_from_zero_lose_nothing() -> None:
    here = world(dtype=torch.float32)
    bias_V = (here.head.bias_V.detach() + 5000).requires_grad_()  # type: ignore[union-attr]
    here = here._replace(head=here.head._replace(bias_V=bias_V))
    # Near 5,000 a logit in float32 is itself known to 5e-4 only.
    assert_same(tiled_full(here, ReverseKL(), TILINGS[0]), naive_full(here, ReverseKL()), 1e-3)


def test_bfloat16_heads_are_as_near_to_the_truth_as_the_naive_form() -> None:
    here = world(dtype=torch.bfloat16)
    here = here._replace(weights_N=here.weights_N.float())
    wide = [each.detach().double().requires_grad_() for each in (here.hidden_ND, *here.head[:2]) if each is not None]
    truth = here._replace(
        hidden_ND=wide[0],
        head=Head(wide[1], wide[2]),
        teacher_hidden_ND=here.teacher_hidden_ND.double(),
        teacher_head=Head(here.teacher_head.weight_VD.double()),
    )
    exact = naive_full(truth, ReverseKL())[2]
    naive, tiled = naive_full(here, ReverseKL()), tiled_full(here, ReverseKL(), TILINGS[0])
    assert tiled[0].dtype == torch.float32
    torch.testing.assert_close(tiled[0], naive[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(tiled[1], naive[1], rtol=1e-5, atol=1e-5)
    for mine, other, right in zip(tiled[2], naive[2], exact, strict=True):
        assert mine is not None and other is not None and right is not None and mine.dtype == torch.bfloat16
        errors = [(each.double() - right).norm() / right.norm() for each in (mine, other)]
        assert errors[0] < 1.5 * errors[1] < 0.05


def test_what_is_frozen_gets_no_gradient_and_costs_none() -> None:
    """An adapter on the backbone: the head is frozen, the hidden states are not."""
    here = world()
    frozen = here._replace(head=Head(here.head.weight_VD.detach()))
    expected = naive_full(frozen, ReverseKL())
    for tiling in TILINGS:
        with Memory() as memory:
            found = tiled_full(frozen, ReverseKL(), tiling)
        assert_same(found, expected, 1e-10)
        assert tiling.vocabulary == V or memory.largest < frozen.head.weight_VD.numel()


def test_tied_weights_get_both_gradients() -> None:
    here = world()
    weight_VD = here.head.weight_VD
    mixing_DD = torch.randn(D, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    tied = here._replace(hidden_ND=weight_VD[here.tokens_N] @ mixing_DD)
    forms = (ReverseKL().between(*map(normalise, whole(tied))), values_of(tied, TILINGS[1]))
    found = [torch.autograd.grad((values * tied.weights_N).sum(), weight_VD, retain_graph=True)[0] for values in forms]
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-12)


def with_holes(here: World, holes: str) -> World:
    """A world in which one model, both, or each on its own forbid tokens; the first word of all is certain."""
    blocked_V, other_V = torch.zeros(2, PADDED + 2, dtype=torch.float64)
    blocked_V[[2, 9, 30]], other_V[[2, 4, 31]] = -math.inf, -math.inf
    if holes == "certain":
        blocked_V[1:] = other_V[1:] = -math.inf
    if holes != "teacher":
        here = here._replace(head=here.head._replace(bias_V=blocked_V[:PADDED].requires_grad_()))
    if holes != "student":
        here = here._replace(teacher_head=here.teacher_head._replace(bias_V=other_V))
    return here


every_hole = pytest.mark.parametrize("holes", ["student", "teacher", "both", "certain"])


@pytest.mark.sweeps
@every_hole
@pytest.mark.parametrize("divergence", LOCAL, ids=repr)
def test_impossible_tokens_are_as_in_the_naive_form(divergence: Divergence, holes: str) -> None:
    """Infinite values of some tokens, and finite gradients all the same."""
    here = with_holes(world(PLAIN), holes)
    for tiling in TILINGS[:2]:
        tiled, naive = tiled_full(here, divergence, tiling), naive_full(here, divergence)
        assert all(each is not None and each.isfinite().all() for each in tiled[2])
        assert_same(tiled, naive, 1e-10)


ANY = [member for member in MEMBERS + WITH_FROZEN_WEIGHT if member.tokens_per_group is None]


@pytest.mark.sweeps
@pytest.mark.parametrize("rest", ["tail", "renormalised", "truncated"])
@pytest.mark.parametrize("member", ANY, ids=repr)
def test_every_member_on_a_support(member: Divergence, rest: str) -> None:
    divergence = replace(member, support="student_top_k", top_k=4, rest=rest)
    for softcap, vocabulary in ((None, MERGED), (2.0, PLAIN)):
        expected, found = both_on_support(world(vocabulary, softcap=softcap), divergence, 6, TILINGS[:2])
        for each in found:
            assert_same(each, expected, 1e-10)


@pytest.mark.sweeps
@every_hole
@pytest.mark.parametrize("member", ANY, ids=repr)
def test_impossible_tokens_on_a_support_are_as_in_the_naive_form(member: Divergence, holes: str) -> None:
    for rest in ("tail", "truncated"):
        divergence = replace(member, support="student_top_k", top_k=4, rest=rest)
        expected, found = both_on_support(with_holes(world(PLAIN), holes), divergence, 6, TILINGS[:2])
        for each in found:
            assert all(gradient is not None and gradient.isfinite().all() for gradient in each[2])
            assert_same(each, expected, 1e-10)


@pytest.mark.parametrize("member", [ReverseKL(), ForwardKL(), JensenShannon()], ids=repr)
def test_on_a_support_in_float32(member: Divergence) -> None:
    expected, found = both_on_support(world(dtype=torch.float32), replace(member, top_k=4), 4, TILINGS)
    for each in found:
        assert_same(each, expected, 1e-5)


def test_a_support_that_is_the_whole_vocabulary_has_an_empty_rest() -> None:
    for vocabulary in (PLAIN, MERGED):
        expected, found = both_on_support(world(vocabulary), ReverseKL(top_k=V), V, TILINGS)
        for each in found:
            assert_same(each, expected, 1e-10)


def test_the_sampled_token_has_a_gradient_of_its_own() -> None:
    """Where a loss asks for it, and whether or not the token is in the support."""
    here = world(PLAIN)
    factors_N = torch.linspace(-1, 1, N).double()
    student = normalise(whole(here)[0])
    is_outside_N = torch.arange(N) % 2
    ids_NK = (here.tokens_N[:, None] + is_outside_N[:, None] + torch.arange(4)) % V
    kept = student.gather(-1, ids_NK)
    now_N = gather_logprobs(student, here.tokens_N)
    expected = learned(factors_N * now_N + kept.square().sum(-1), now_N, here)
    for tiling in TILINGS:
        found = tiled_support_loss(
            sides(here)[0],
            here.vocabulary.view(torch.device("cpu")),
            lambda events, span: factors_N[span] * events.sampled_n + events.kept_nK.square().sum(-1),
            ids_NK,
            sampled(here),
            tiling,
        )
        assert_same(learned(*found, here), expected, 1e-10)


@pytest.mark.parametrize("factor", [1.0, 0.05])
@pytest.mark.parametrize("jsd_share", [None, 1.0])
def test_a_function_of_the_sampled_tokens_joins_in_the_same_passes(factor: float, jsd_share: float | None) -> None:
    """factor · D + F(log p of the sampled token), and its gradient, against autograd."""
    scales_N = torch.linspace(-2, 2, N).double()
    for vocabulary, softcap in ((PLAIN, None), (MERGED, 2.0)):
        here = world(vocabulary, softcap=softcap)
        student, teacher = map(normalise, whole(here))
        now_N = gather_logprobs(student, here.tokens_N)
        values_N = factor * ReverseKL().between(student, teacher) + scales_N * now_N.exp()
        expected = learned(values_N, now_N, here)
        view, full = vocabulary.view(torch.device("cpu")), FullDivergence(ReverseKL().between, factor, jsd_share)
        for tiling in TILINGS:
            found = tiled_full_loss(
                *sides(here), view, full, sampled(here), tiling, lambda now_n, span: scales_N[span] * now_n.exp()
            )
            assert_same(learned(*found, here), expected, 1e-10)


# --- the way back, and memory -----------------------------------------------------------------------------------------


def values_of(world: World, tiling: Tiling) -> Tensor:
    view = world.vocabulary.view(torch.device("cpu"))
    return tiled_full_loss(*sides(world), view, FullDivergence(ReverseKL().between), sampled(world), tiling)[0]


def test_other_weights_than_announced_are_noticed() -> None:
    here = world()
    with pytest.raises(AssertionError, match="not a multiple of its weights"):
        values_of(here, TILINGS[0]).sum().backward()


def test_a_second_backward_is_noticed() -> None:
    here = world()
    loss = (values_of(here, TILINGS[0]) * here.weights_N).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(AssertionError, match="one backward pass"):
        loss.backward()


def test_without_gradients_there_are_values() -> None:
    here = world()
    with torch.no_grad():
        values = values_of(here, TILINGS[1])
    assert not values.requires_grad
    torch.testing.assert_close(values, naive_full(here, ReverseKL())[0])


class Memory(TorchDispatchMode):
    """Counts the bytes of all tensors that are made, and that are alive: the same on every machine.

    Fields:
      largest: numbers in the largest tensor.
      peak: most bytes that were alive at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.largest, self.peak, self._now = 0, 0, 0
        self._alive: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {each.untyped_storage()._cdata for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)}
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if not isinstance(tensor, Tensor):
                continue
            storage = tensor.untyped_storage()
            if storage._cdata in given or storage._cdata in self._alive:
                continue
            self._alive[storage._cdata] = storage.nbytes()
            self.largest = max(self.largest, tensor.numel())
            self._now += storage.nbytes()
            self.peak = max(self.peak, self._now)
            weakref.finalize(storage, self._gone, storage._cdata)
        return made

    def _gone(self, key: int) -> None:
        self._now -= self._alive.pop(key, 0)


def used(num_tokens: int, size: int, tiling: Tiling | None) -> Memory:
    """Memory of value and gradient; None = the naive form."""
    here = world(Vocabulary(size), torch.float32, num_tokens=num_tokens, size=size)
    with Memory() as memory:
        if tiling is None:
            naive_full(here, ReverseKL())
        else:
            tiled_full(here, ReverseKL(), tiling)
    return memory


def test_nothing_wider_than_a_tile_is_held() -> None:
    size, num_tokens = 1000, 150
    naive, memory = used(num_tokens, size, None), used(num_tokens, size, Tiling(32, 100, keeps=False))
    assert naive.largest >= num_tokens * size
    assert memory.largest == size * D  # the head's own gradient
    assert memory.peak < naive.peak / 20


def test_memory_of_kept_rows_does_not_grow_with_the_tokens() -> None:
    size, tiling = 2000, Tiling(32, 100)
    some, more = used(150, size, tiling), used(300, size, tiling)
    assert more.largest == size * D
    rows, per_token = 2 * 32 * size * 4, 64 * D
    assert some.peak > rows, "a block's rows are kept"
    assert more.peak < some.peak + 150 * per_token < used(300, size, None).peak / 5


def test_default_tiles_keep_their_promise() -> None:
    view = Vocabulary(151_936).view(torch.device("cpu"))
    tiling = Tiling.fitting(view, torch.empty(32_768, 8), 8)
    assert tiling.keeps and tiling.tokens * view.size * 8 <= 2**29 < (tiling.tokens + 1) * view.size * 8
    assert tiling.tokens * tiling.vocabulary <= 2**19
    assert Tiling.fitting(view, torch.empty(5, 8), 8).tokens == 5
    assert Tiling.fitting(view, torch.empty(5, 8), 8, whole_rows=True).vocabulary == view.size
    assert list(Tiling.fitting(view, torch.empty(0, 8, device="meta"), 8).blocks(0)) == []


@pytest.mark.parametrize("size", [32_000, 151_936, 248_320])
def test_on_a_card_logits_get_what_the_gradients_leave(size: int) -> None:
    """8,192 tokens of width 2,048 in bfloat16, and at most 1.3 GiB in all."""
    view, width = Vocabulary(size).view(torch.device("meta")), 2048
    tiling = Tiling.fitting(view, torch.empty(8192, width, dtype=torch.bfloat16, device="meta"), 4)
    assert tiling.keeps and tiling.tokens >= 256 and tiling.tokens % 64 == 0
    assert len(tiling.tiles(view)) >= 16
    gradients, product = 2 * width * (size + 8192), 4 * width * tiling.tokens
    logits, tile = 4 * tiling.tokens * size, 4 * tiling.tokens * tiling.vocabulary
    assert gradients + product + logits + tile <= 1.3 * 2**30


def test_under_autocast_the_heads_are_multiplied_in_bfloat16() -> None:
    """As the naive form does there: float32 weights, bfloat16 products."""
    here = world(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        naive, tiled = naive_full(here, ReverseKL()), tiled_full(here, ReverseKL(), TILINGS[0])
    exact = tiled_full(here, ReverseKL(), TILINGS[0])
    assert_same(tiled, naive, 2e-2)
    assert not torch.allclose(tiled[0], exact[0], rtol=1e-4), "nothing was rounded"
