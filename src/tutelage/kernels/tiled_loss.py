"""A loss straight from hidden states and heads, whose gradient is taken in the same passes, tile by tile.

With z the shared logits of a token, log p = z - log Σ exp z, and a divergence D that is a sum over events,

    ∂D / ∂z_v = g_v - p_v Σ_u g_u,     g_v = ∂D / ∂log p_v

g_v is local to an event. So three passes suffice: log masses; D and Σ g; gradients of hidden states and head. Over a
support, D is a function of K kept logits and of the log mass R of the rest, a few numbers that autograd handles, and

    ∂D / ∂z_v = ∂D / ∂R · exp(z_v - R)     for every v of the rest,

so two passes suffice. What each token's value is weighed with in the loss is known beforehand (`weights_N`); hence
the gradients are complete when the values are, and no logits wait for a backward pass or are computed again in it.

The divergence comes as a function of log-probabilities and is differentiated by autograd inside a tile: no formula is
written here. Axis letters: N all tokens, K kept events; the others as in `kernels.tiles`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from tutelage.distributions import wide_dtype
from tutelage.kernels.head_gradient import HeadGradient
from tutelage.kernels.tile_divergence import FullDivergence, tile_divergence_for, tiled_logits_for
from tutelage.kernels.tiles import Head, LogMass, TiledLogits, Tiling, VocabularyView, inside

__all__ = ["Events", "Sampled", "Side", "tiled_full_loss", "tiled_support_loss"]


class Events(NamedTuple):
    """Log-probabilities of a student on the K events of a support, on the rest, and on the sampled token.

    Fields:
      kept_nK, rest_n, sampled_n: normalised over the whole vocabulary; rest_n is summed over the rest itself.
    """

    kept_nK: Tensor
    rest_n: Tensor
    sampled_n: Tensor


class Side(NamedTuple):
    """One of the models of a loss.

    Fields:
      hidden_ND: final hidden states at all tokens.
      head: what turns them into logits.
    """

    hidden_ND: Tensor
    head: Head


class Sampled(NamedTuple):
    """The tokens that were sampled.

    Fields:
      ids_N: their ids.
      weights_N: what their values are weighed with in the loss, up to a common factor. A token of weight 0 has no
        gradient, whatever its value.
    """

    ids_N: Tensor
    weights_N: Tensor


def tiled_full_loss(
    learner: Side,
    other: Side,
    view: VocabularyView,
    divergence: FullDivergence,
    sampled: Sampled,
    tiling: Tiling,
    on_sampled: Callable[[Tensor, slice], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """A divergence over the whole vocabulary, and a function of the sampled tokens' log p, in the same passes.

    With F a function of log p of the sampled token a, its gradient on the logits is F' (1[v = a] - p_v).

    Args:
      learner, other: student and target, with hidden states of any width; no gradient reaches the target.
      view: the vocabulary that both share.
      tiling: how the work is cut.
      on_sampled: F: (log p of a block's sampled tokens, the block) -> [n], added to the divergence; None = nothing is.
    Returns:
      values_N, with a graph to hidden states and head for one backward pass, whose gradient must be a multiple of the
      weights; and log p of the sampled tokens, [N], without a graph.
    """
    tile_class = tile_divergence_for(learner.hidden_ND.device, divergence.jsd_share, tiling.keeps)
    tiles, passes = _tiles_and_passes(tile_class.logits_class, tiling, view)
    values_N, sampled_N = _empty(learner.hidden_ND), _empty(learner.hidden_ND)
    weights_N = sampled.weights_N.to(values_N.dtype)
    gradient = HeadGradient(learner.head, learner.hidden_ND, is_whole=tile_class.logits_class.is_whole)
    with torch.no_grad():
        for block in tiling.blocks(len(values_N)):
            student = tile_class.logits_class(learner.head, view, learner.hidden_ND[block], tiling.keeps)
            target = tile_class.logits_class(other.head, view, other.hidden_ND[block], tiling.keeps)
            student_mass, sampled_n1 = student.scan(tiles, sampled.ids_N[block, None])
            target_mass, _ = target.scan(tiles, sampled.ids_N[block, None])
            sampled_N[block] = student_mass.normalised(sampled_n1)[:, 0]
            on_tile = tile_class(student, student_mass, target, target_mass, divergence, gradient.is_wanted)
            sums = [on_tile.sums(tile) for tile in passes]
            values_N[block] = divergence.factor * torch.stack([value_n for value_n, _ in sums]).sum(0)
            slope_n = torch.stack([slope_n for _, slope_n in sums]).sum(0)
            pull_n = None  # F' of the sampled tokens, weighed
            if on_sampled is not None:
                value_n, derivative_n = _with_derivative(on_sampled, sampled_N[block], block)
                values_N[block] += value_n
                slope_n = slope_n + derivative_n / divergence.factor
                pull_n = (weights_N[block] * derivative_n).masked_fill(weights_N[block] == 0, 0)
            for tile in passes if gradient.is_wanted else ():
                gradient_nm = on_tile.gradient(tile, slope_n, divergence.factor * weights_N[block])
                if pull_n is not None:
                    places_n1, is_inside_n1 = inside(sampled.ids_N[block, None], tile)
                    pulls_n1 = student.of_picked(pull_n[:, None]).masked_fill(~is_inside_n1, 0).to(gradient_nm.dtype)
                    gradient_nm.scatter_add_(1, places_n1, pulls_n1)
                gradient.add(block, student, tile, gradient_nm)
                del gradient_nm  # the logits' own memory, perhaps
                student.drop(tile)
                target.drop(tile)
            del on_tile  # which holds the block's logits
    return gradient.attached(values_N, weights_N, learner.hidden_ND), sampled_N


def _with_derivative(
    function: Callable[[Tensor, slice], Tensor], logprobs_n: Tensor, block: slice
) -> tuple[Tensor, Tensor]:
    """F and F' at the log-probabilities of a block's tokens, [n] each."""
    with torch.enable_grad():
        logprobs_n = logprobs_n.detach().requires_grad_()
        values_n = function(logprobs_n, block)
        (derivative_n,) = torch.autograd.grad(values_n.sum(), logprobs_n, allow_unused=True, materialize_grads=True)
    return values_n.detach(), derivative_n


def tiled_support_loss(
    learner: Side,
    view: VocabularyView,
    of_events: Callable[[Events, slice], Tensor],
    ids_NK: Tensor,
    sampled: Sampled,
    tiling: Tiling,
) -> tuple[Tensor, Tensor]:
    """A loss on the events of a support and their rest, from hidden states and a head.

    Args:
      of_events: (events of a block, the block) -> [n]; any function that autograd can differentiate.
      ids_NK: the support, K different ids per token; K may be 0.
      (the others as in `tiled_full_loss`)
    Returns:
      as `tiled_full_loss`.
    """
    hidden_ND, head = learner
    logits_class = tiled_logits_for(hidden_ND.device, tiling.keeps)
    tiles, passes = _tiles_and_passes(logits_class, tiling, view)
    values_N, sampled_N = _empty(hidden_ND), _empty(hidden_ND)
    weights_N = sampled.weights_N.to(values_N.dtype)
    gradient = HeadGradient(head, hidden_ND, is_whole=logits_class.is_whole)
    with torch.no_grad():
        for block in tiling.blocks(len(hidden_ND)):
            logits = logits_class(head, view, hidden_ND[block], tiling.keeps)
            ids_nK, weights_n = ids_NK[block], weights_N[block]
            picked_ids_nK = torch.cat([ids_nK, sampled.ids_N[block, None]], dim=-1)
            rest, picked_nK = logits.scan(tiles, picked_ids_nK, ids_nK)
            # Only differences matter, and logits may lie far from 0.
            shift_n = torch.maximum(rest.peak_n, picked_nK.amax(-1))
            rest_n = (rest.peak_n - shift_n) + rest.log_sum_n
            with torch.enable_grad():
                picked_nK = (picked_nK - shift_n[:, None]).requires_grad_()
                rest_n.requires_grad_()
                kept_nK = picked_nK[:, :-1]
                mass_n = torch.cat([kept_nK, rest_n[:, None]], dim=-1).logsumexp(-1)
                events = Events(kept_nK - mass_n[:, None], rest_n - mass_n, picked_nK[:, -1] - mass_n)
                values_n = of_events(events, block)
                if gradient.is_wanted:
                    # What does not count must not count when it is infinite either.
                    counted = (weights_n * values_n.masked_fill(weights_n == 0, 0)).sum()
                    slopes_nK, rest_slope_n = torch.autograd.grad(
                        counted, (picked_nK, rest_n), allow_unused=True, materialize_grads=True
                    )
            values_N[block], sampled_N[block] = values_n.detach(), events.sampled_n.detach()
            # An empty rest has no slope, and exp(-inf - 0) is 0 where exp(-inf - -inf) would be NaN.
            rest_n = rest_n.detach().masked_fill(rest_n == float("-inf"), 0)
            for tile in passes if gradient.is_wanted else ():
                gradient_nm = logits.rest_gradient(tile, ids_nK, LogMass(shift_n, rest_n), rest_slope_n)
                places_nK, is_inside_nK = inside(picked_ids_nK, tile)
                slopes_inside_nK = logits.of_picked(slopes_nK).masked_fill(~is_inside_nK, 0).to(gradient_nm.dtype)
                gradient_nm.scatter_add_(1, places_nK, slopes_inside_nK)
                gradient.add(block, logits, tile, gradient_nm)
                del gradient_nm
                logits.drop(tile)
    return gradient.attached(values_N, weights_N, hidden_ND), sampled_N


def _tiles_and_passes(
    logits_class: type[TiledLogits], tiling: Tiling, view: VocabularyView
) -> tuple[list[slice], list[slice]]:
    """What the first pass goes through, and what the others do."""
    tiles = tiling.tiles(view)
    return tiles, [slice(0, view.size)] if logits_class.is_whole else tiles


def _empty(hidden_ND: Tensor) -> Tensor:
    return torch.empty(len(hidden_ND), dtype=wide_dtype(hidden_ND), device=hidden_ND.device)
