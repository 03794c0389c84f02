"""What records ask of whole next-token distributions: one token, entropy, the most probable tokens, and the rest.

Where rows are normalised first, some thirty passes over [N, V] answer that. A kernel reads the logits once for all of
it, and `topk` takes them as they are.

Axis letters: N rows, V vocabulary, K tokens of a support.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from tutelage.distributions import entropy, gather_logprobs, normalise, tail_logprobs, wide_dtype
from tutelage.kernels.sampler import has_kernels

__all__ = ["ReadRows", "Rows", "read_rows"]


class Rows:
    """Distributions of which whole rows are there.

    Attributes:
      logprobs_NV: log p, normalised, float32 or wider; -inf marks an impossible token.
    """

    def __init__(self, logprobs_NV: Tensor) -> None:
        self._logprobs_NV = logprobs_NV

    @property
    def logprobs_NV(self) -> Tensor:
        return self._logprobs_NV

    def logprobs_of(self, ids: Tensor) -> Tensor:
        """log p of one given token of each row, [N], or of K, [N, K]."""
        return gather_logprobs(self.logprobs_NV, ids) if ids.dim() == 1 else self.logprobs_NV.gather(-1, ids)

    def entropy(self) -> Tensor:
        """-Σ p log p of each row, in nats, [N]."""
        return entropy(self.logprobs_NV)

    def top(self, num_tokens: int) -> Tensor:
        """Ids of the most probable tokens, the first first, [N, K]; never more than V."""
        return self.logprobs_NV.topk(min(num_tokens, self.logprobs_NV.shape[-1]), dim=-1).indices

    def tail(self, ids_NK: Tensor) -> Tensor:
        """log p of all tokens but the given ones, summed over themselves, [N]; -inf where there are no others."""
        return tail_logprobs(self.logprobs_NV, ids_NK)


class ReadRows(Rows):
    """The same from logits that a kernel reads; see `read_rows`."""

    def __init__(self, logits_NV: Tensor) -> None:
        self.logits_NV = logits_NV
        self._dtype = wide_dtype(logits_NV)
        self._mass_entropy_2N: Tensor | None = None

    @cached_property
    def logprobs_NV(self) -> Tensor:
        return normalise(self.logits_NV)

    def logprobs_of(self, ids: Tensor) -> Tensor:
        """See `Rows`."""
        logits_NK = self.logits_NV.gather(-1, (ids if ids.dim() == 2 else ids[:, None])).double()
        return (logits_NK - self._read[0][:, None]).to(self._dtype).reshape(ids.shape)

    def entropy(self) -> Tensor:
        """See `Rows`."""
        return self._read[1].to(self._dtype)

    def top(self, num_tokens: int) -> Tensor:
        """See `Rows`."""
        return self.logits_NV.topk(min(num_tokens, self.logits_NV.shape[-1]), dim=-1).indices

    def tail(self, ids_NK: Tensor) -> Tensor:
        """See `Rows`; the read gives mass and entropy, too, so it is best asked first."""
        from tutelage.kernels import triton_statistics

        found_3N: Tensor = triton_statistics.read(self.logits_NV, ids_NK)
        self._mass_entropy_2N = found_3N[:2]
        return found_3N[2].to(self._dtype)

    @property
    def _read(self) -> Tensor:
        """Log mass and entropy, [2, N] in float64."""
        from tutelage.kernels import triton_statistics

        if self._mass_entropy_2N is None:
            self._mass_entropy_2N = triton_statistics.read(self.logits_NV)[:2]
        return self._mass_entropy_2N


@torch.no_grad()
def read_rows(logits_NV: Tensor) -> Rows:
    """The distributions that logits stand for, read with as few passes as the device allows.

    Args:
      logits_NV: need not be normalised; -inf allowed. A row without any finite logit is NaN in all that is asked.
    """
    return ReadRows(logits_NV) if has_kernels(logits_NV.device) else Rows(normalise(logits_NV))
