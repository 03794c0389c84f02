"""Tiles against the naive form: whole logits, autograd. Axis letters as in `kernels.tiles`."""

from __future__ import annotations

import math
import weakref
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.contracts.test_divergences import MEMBERS, WITH_FROZEN_WEIGHT
from tutelage.distributions import gather_logprobs, normalise
from tutelage.divergences import Divergence, ForwardKL, JensenShannon, ReverseKL, StudentTopK
from tutelage.kernels import (
    Events,
    FullDivergence,
    Head,
    Sampled,
    Side,
    Tiling,
    tiled_full_loss,
    tiled_support_loss,
)
from tutelage.models import Vocabulary
from tutelage.types import SparseTarget

N, D, WIDTH, V, PADDED = 13, 6, 9, 41, 45
PLAIN = Vocabulary(V)
MERGED = Vocabulary(V, stop_ids=(7, 3, 40), stop_id=7, padding_ids=(5, 12))
LOCAL = [member for member in MEMBERS if member.is_sum_over_events]

# Neither tokens nor vocabulary are multiples of the first two.
TILINGS = [Tiling(5, 11), Tiling(5, 11, keeps=False), Tiling(N, V)]
WHOLE_ROWS = Tiling(5, V)

Found = tuple[Tensor, Tensor, list[Tensor | None]]


class World(NamedTuple):
    """A student's and a teacher's hidden states and heads, sampled tokens and weights."""

    hidden_ND: Tensor
    head: Head
    teacher_hidden_ND: Tensor
    teacher_head: Head
    vocabulary: Vocabulary
    tokens_N: Tensor
    weights_N: Tensor


def world(
    vocabulary: Vocabulary = MERGED,
    dtype: torch.dtype = torch.float64,
    softcap: float | None = None,
    num_tokens: int = N,
    size: int = PADDED,
) -> World:
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    weights_N = torch.rand(num_tokens, generator=generator, dtype=torch.float64).to(dtype)
    weights_N[3] = 0
    tokens_N = torch.randint(13, 39, (num_tokens,), generator=generator)
    tokens_N[0] = 7  # the stop event itself
    head = Head(drawn(size, D).requires_grad_(), drawn(size).requires_grad_(), softcap)
    teacher_head = Head(drawn(size + 2, WIDTH), None, softcap)
    hidden_ND = drawn(num_tokens, D).requires_grad_()
    return World(hidden_ND, head, drawn(num_tokens, WIDTH), teacher_head, vocabulary, tokens_N, weights_N)


def whole(world: World) -> tuple[Tensor, Tensor]:
    """Shared logits [N, V] of both, from whole heads."""
    heads = ((world.head, world.hidden_ND), (world.teacher_head, world.teacher_hidden_ND))
    student, teacher = (world.vocabulary.shared_logits(head.logits(hidden, slice(None))) for head, hidden in heads)
    return student, teacher.detach()


def sides(world: World) -> tuple[Side, Side]:
    """Student and teacher."""
    return Side(world.hidden_ND, world.head), Side(world.teacher_hidden_ND, world.teacher_head)


def sampled(world: World) -> Sampled:
    return Sampled(world.tokens_N, world.weights_N)


def learned(values_N: Tensor, sampled_N: Tensor, world: World) -> Found:
    """Values, log p of the sampled tokens, and the gradients of a weighted mean."""
    loss = (values_N.masked_fill(world.weights_N == 0, 0) * world.weights_N).sum() / 5
    wanted = [each for each in (world.hidden_ND, *world.head[:2]) if each is not None and each.requires_grad]
    gradients = torch.autograd.grad(loss, wanted)
    return values_N.detach(), sampled_N.detach(), list(gradients)


def naive_full(world: World, divergence: Divergence) -> Found:
    student, teacher = map(normalise, whole(world))
    return learned(divergence.between(student, teacher), gather_logprobs(student, world.tokens_N), world)


def tiled_full(world: World, divergence: Divergence, tiling: Tiling) -> Found:
    view = world.vocabulary.view(world.hidden_ND.device)
    full = FullDivergence(divergence.between, 1.0, divergence.generalised_jsd_share)
    return learned(*tiled_full_loss(*sides(world), view, full, sampled(world), tiling), world)


def assert_same(found: Found, expected: Found, tolerance: float) -> None:
    for mine, other in zip((*found[:2], *found[2]), (*expected[:2], *expected[2]), strict=True):
        assert mine.dtype == other.dtype
        scale = other.masked_fill(~other.isfinite(), 0).abs().max().item()
        torch.testing.assert_close(mine, other, rtol=tolerance, atol=tolerance * scale)


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


@every_hole
@pytest.mark.parametrize("divergence", LOCAL, ids=repr)
def test_impossible_tokens_are_as_in_the_naive_form(divergence: Divergence, holes: str) -> None:
    """Infinite values of some tokens, and finite gradients all the same."""
    here = with_holes(world(PLAIN), holes)
    for tiling in TILINGS[:2]:
        tiled, naive = tiled_full(here, divergence, tiling), naive_full(here, divergence)
        assert all(each is not None and each.isfinite().all() for each in tiled[2])
        assert_same(tiled, naive, 1e-10)


# --- a support and its rest -------------------------------------------------------------------------------------------


def record(world: World, top_k: int) -> SparseTarget:
    """What a rollout would have kept: the student's top tokens, and the teacher on them."""
    student, teacher = whole(world)
    ids = student.detach().topk(top_k).indices
    logprobs = normalise(teacher)
    rest = logprobs.scatter(-1, ids, -math.inf)
    return SparseTarget(ids, logprobs.gather(-1, ids), rest.logsumexp(-1))


def both_on_support(
    world: World, divergence: Divergence, top_k: int, tilings: list[Tiling]
) -> tuple[Found, list[Found]]:
    """The naive form and the tiled ones."""
    target = record(world, top_k)
    student = normalise(whole(world)[0])
    expected = learned(
        divergence.between(*divergence.window.events(whole(world)[0], target)),
        gather_logprobs(student, world.tokens_N),
        world,
    )
    window = divergence.window
    assert isinstance(window, StudentTopK)

    def of_events(events: Events, span: slice) -> Tensor:
        part = SparseTarget(target.support_ids[span], target.logprobs[span], target.tail_logprobs[span])
        return divergence.between(*window.events_on_record(events.kept_nK, events.rest_n, part))

    ids_NK = window.recorded_ids(target, V)
    view = world.vocabulary.view(world.hidden_ND.device)
    return expected, [
        learned(*tiled_support_loss(sides(world)[0], view, of_events, ids_NK, sampled(world), tiling), world)
        for tiling in tilings
    ]


ANY = [member for member in MEMBERS + WITH_FROZEN_WEIGHT if member.tokens_per_group is None]


@pytest.mark.parametrize("rest", ["tail", "renormalised", "truncated"])
@pytest.mark.parametrize("member", ANY, ids=repr)
def test_every_member_on_a_support(member: Divergence, rest: str) -> None:
    divergence = replace(member, support="student_top_k", top_k=4, rest=rest)
    for softcap, vocabulary in ((None, MERGED), (2.0, PLAIN)):
        expected, found = both_on_support(world(vocabulary, softcap=softcap), divergence, 6, TILINGS[:2])
        for each in found:
            assert_same(each, expected, 1e-10)


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


def test_under_autocast_the_heads_are_multiplied_in_bfloat16() -> None:
    """As the naive form does there: float32 weights, bfloat16 products."""
    here = world(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        naive, tiled = naive_full(here, ReverseKL()), tiled_full(here, ReverseKL(), TILINGS[0])
    exact = tiled_full(here, ReverseKL(), TILINGS[0])
    assert_same(tiled, naive, 2e-2)
    assert not torch.allclose(tiled[0], exact[0], rtol=1e-4), "nothing was rounded"
