"""A divergence straight from hidden states, without ever holding [tokens, V].

The language-model head is by far the widest layer: 8,192 response tokens against 152,000 words are 5 GB in float32, and
autograd would keep several such tensors. So tokens go through the head in chunks, and each chunk is computed again in
backward instead of being kept (Chen et al. 2016, "Training deep nets with sublinear memory cost").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

__all__ = ["chunked_divergence"]


def chunked_divergence(
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
