"""The loss straight from hidden states, without ever holding [tokens, V].

The language-model head is by far the widest layer: 8,192 response tokens against 152,000 words are 5 GB in float32, and
autograd would keep several such tensors. So tokens go through the head in chunks, and each chunk is computed again in
backward instead of being kept (Chen et al. 2016, "Training deep nets with sublinear memory cost").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tutelage.distributions import gather_logprobs, normalise
from tutelage.losses import Support
from tutelage.training.forms.terms import Events, MicroBatch, TokenTerms, is_among
from tutelage.training.target_models import TargetModels

__all__ = ["chunked", "in_chunks", "sampled_logprobs"]


def chunked(
    batch: MicroBatch, terms: TokenTerms, models: TargetModels, chunk_tokens: int, *, learns_from_answers: bool = False
) -> tuple[Tensor, Tensor]:
    """Values of all terms and log p of the sampled tokens, [N] each.

    Args:
      chunk_tokens: tokens that go through the head at once.
      learns_from_answers: log p has a graph of its own, for losses on whole answers.
    """
    teacher = {window: models.teacher(window) for window in terms.windows}
    reference = {window: models.reference(window, terms.target) for window in terms.windows if terms.target.needs}
    is_learned_from = learns_from_answers or terms.learns_from_tokens

    def per_token(hidden_nD: Tensor, span: slice) -> dict[str, Tensor]:
        logits_nV = batch.vocabulary.shared_logits(batch.student.logits(hidden_nD))

        def events(window: Support) -> Events:
            student, taught, ids = window.events_and_ids(logits_nV, teacher[window](span))
            third = None
            if window in reference:
                _, third = window.events(logits_nV.detach(), reference[window](span))
            is_inside = is_among(batch.tokens_N[span], ids) if terms.asks_inside(window) else None
            return Events(student, taught, third, is_inside)

        with torch.set_grad_enabled(is_learned_from and torch.is_grad_enabled()):
            logprobs_n = gather_logprobs(normalise(logits_nV), batch.tokens_N[span])
        # Without a term there is nothing to learn, and yet a gradient: that of 0.
        values_n = terms(events, logprobs_n, span) if terms.losses else 0.0 * hidden_nD.sum(-1)
        return {"values": values_n, "logprobs": logprobs_n if learns_from_answers else logprobs_n.detach()}

    groups = [group for loss in terms.distribution_losses if (group := loss.tokens_per_group) is not None]
    # What is compared together stays together, and nothing else joins it.
    lengths = [len(rollout) for rollout in batch.rollouts] if groups else None
    found = in_chunks(per_token, batch.hidden_ND, math.lcm(*groups) if groups else chunk_tokens, lengths)
    return found["values"], found["logprobs"]


@torch.no_grad()
def sampled_logprobs(batch: MicroBatch, chunk_tokens: int) -> Tensor:
    """Log p of the sampled tokens as the student is now, [N], without a gradient; one more pass through its head."""
    found = []
    for first in range(0, len(batch.tokens_N), chunk_tokens):
        span = slice(first, first + chunk_tokens)
        logits_nV = batch.vocabulary.shared_logits(batch.student.logits(batch.hidden_ND[span]))
        found.append(gather_logprobs(normalise(logits_nV), batch.tokens_N[span]))
    return torch.cat(found)


def in_chunks(
    per_token: Callable[[Tensor, slice], dict[str, Tensor]],
    hidden_ND: Tensor,
    chunk_tokens: int,
    lengths: Sequence[int] | None = None,
) -> dict[str, Tensor]:
    """Apply `per_token` to chunks of hidden states and lay the results end to end.

    Args:
      per_token: (hidden chunk [n, D], its place in N) -> named per-token values [n]; called once more in backward.
      hidden_ND: hidden states of N tokens.
      chunk_tokens: tokens per chunk; bounds the memory at chunk_tokens · V numbers, whatever N is.
      lengths: of consecutive stretches whose borders no chunk may cross, N in all; None = there is one.
    Returns:
      the same names, [N] each. Equal to one call on everything, up to the order of additions in the head's gradient.
    """
    pieces: list[dict[str, Tensor]] = []
    start = 0
    for length in [hidden_ND.shape[0]] if lengths is None else lengths:
        for first in range(start, start + length, chunk_tokens):
            span = slice(first, min(first + chunk_tokens, start + length))
            piece: dict[str, Tensor] = checkpoint(per_token, hidden_ND[span], span, use_reentrant=False)
            pieces.append(piece)
        start += length
    return {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
