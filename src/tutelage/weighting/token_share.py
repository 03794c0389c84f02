"""Learn from a share of the tokens: those that the student found least probable, or any."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage.errors import ConfigurationError, check_inside
from tutelage.types import Batch, Fact
from tutelage.weighting.base import Weighting

__all__ = ["TokenShare"]

CHOICES = ("least_probable", "random")
SCOPES = ("batch", "answer")


@dataclass(frozen=True)
class TokenShare(Weighting):
    """1 for max(1, floor(share · n)) of the n tokens of the scope, 0 for the rest              (OPSA, arXiv 2608.31046)

    "least_probable" are the tokens with the smallest log p at the rollout, of equals the earlier. On tokens of the
    student a constant advantage has the mean gradient 0; this choice looks at the token that was drawn, and then it
    does not: with one below 0 rare tokens lose and probable ones gain. "random" looks at nothing and is the control.
    The paper does not say whether its share is one of an answer or of a batch, nor whether the mean is over the chosen
    tokens or all: here over the chosen ones, since losses divide by the sum of the weights. Over all, a step would be
    `share` times as long.

    Fields:
      share: in (0, 1]; the paper has 0.2.
      chosen: "least_probable" or "random", which draws anew in every step.
      over: the scope, "batch" or "answer".
    """

    share: float = 0.2
    chosen: str = "least_probable"
    over: str = "batch"
    is_random = True

    def __post_init__(self) -> None:
        check_inside(self.share, "weighting.share", 0 < self.share <= 1, "a share above 0, at most 1")
        for name, known in (("chosen", CHOICES), ("over", SCOPES)):
            if getattr(self, name) not in known:
                raise ConfigurationError(
                    f"weighting.{name} is {getattr(self, name)!r}; expected one of {', '.join(known)}."
                )

    @property
    def looks_at_token(self) -> bool:
        return self.chosen == "least_probable" and self.share < 1

    @property
    def needs(self) -> frozenset[Fact]:
        return frozenset({Fact.student_token} if self.chosen == "least_probable" else ())

    def __call__(self, batch: Batch, uniforms_N: Tensor | None = None) -> Tensor:
        assert uniforms_N is not None, "token_share is random and needs uniforms_N"
        values_N = uniforms_N if self.chosen == "random" else batch.joined("student.logprobs_T")
        lengths = [batch.num_tokens] if self.over == "batch" else batch.lengths
        return torch.cat([self._smallest(values_n) for values_n in torch.split(values_N, lengths)])

    def _smallest(self, values_n: Tensor) -> Tensor:
        num_kept = min(len(values_n), max(1, math.floor(self.share * len(values_n) + 1e-9)))  # 0.29 · 100 is 28.999...
        kept_k = values_n.argsort(stable=True)[:num_kept]
        return torch.zeros(len(values_n)).index_fill(0, kept_k, 1.0)
