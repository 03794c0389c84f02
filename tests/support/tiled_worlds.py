"""Hidden states and heads, their loss in tiles, and the naive form of it. Axis letters as in `kernels.tiles`."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from tutelage.distributions import gather_logprobs, normalise
from tutelage.divergences import Divergence, StudentTopK
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

# Neither tokens nor vocabulary are multiples of the first two.
TILINGS = [Tiling(5, 11), Tiling(5, 11, keeps=False), Tiling(N, V)]

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


def narrow_and_exact(size: int, num_tokens: int, spread: float) -> tuple[World, World]:
    """A plain world in bfloat16 whose logits spread by so many nats, and the same numbers in float32."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int, std: float = 1.0) -> Tensor:
        return std * torch.randn(*shape, generator=generator)

    width = 64
    hidden_ND, weight_VD = drawn(num_tokens, width), drawn(size, width, std=spread / width**0.5)
    teacher_ND, teacher_VD = (each + 0.2 * each.std() * drawn(*each.shape) for each in (hidden_ND, weight_VD))
    ids_N, ones_N = torch.randint(size, (num_tokens,), generator=generator), torch.ones(num_tokens)

    def of(dtype: torch.dtype) -> World:
        def cast(tensor: Tensor) -> Tensor:
            return tensor.bfloat16().to(dtype)

        learner = cast(hidden_ND).requires_grad_(), Head(cast(weight_VD).requires_grad_())
        return World(*learner, cast(teacher_ND), Head(cast(teacher_VD)), Vocabulary(size), ids_N, ones_N)

    return of(torch.bfloat16), of(torch.float32)


def relative_errors(found: Found, true: Found) -> list[float]:
    """Of values, log p of the sampled tokens and gradients, in norm."""
    pairs = zip((*found[:2], *found[2]), (*true[:2], *true[2]), strict=True)
    return [float((mine.float() - right.float()).norm() / right.float().norm()) for mine, right in pairs]
