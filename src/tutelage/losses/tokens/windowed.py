"""Token losses that look at distributions as well, and what they share."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor

from tutelage.losses.base import TokenFacts, TokenLoss
from tutelage.losses.support import Support, support_named

__all__ = ["WindowedTokenLoss", "reweighed", "score_term"]


@dataclass(frozen=True)
class WindowedTokenLoss(TokenLoss):
    """A token loss with a support.

    Fields:
      support, top_k, rest: as of `DistributionLoss`.
    """

    support: str = "student_top_k"
    top_k: int = 16
    rest: str = "tail"
    _window: Support = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "_window", support_named(self.support, self.top_k, self.rest))

    @property
    def window(self) -> Support | None:
        return self._window


def reweighed(facts: TokenFacts, values_n: Tensor, cap: float) -> Tensor:
    """min(p / mu, cap) · values: as if the student had drawn the tokens. The ratio has no gradient."""
    ratio_n = (facts.student_logprobs - facts.behaviour_logprobs).clamp_max(math.log(cap)).exp()
    # What the student never draws does not count, be it infinite.
    return ratio_n * values_n.masked_fill(ratio_n == 0, 0)


def score_term(logprobs_n: Tensor, advantages_n: Tensor) -> Tensor:
    """A number that is 0 and whose gradient is - advantage · grad log p(a)."""
    # An infinite advantage shows in the loss that stands beside this term; here it would be inf · 0 = NaN.
    advantages_n = advantages_n.masked_fill(~advantages_n.isfinite(), 0).detach()
    logprobs_n = logprobs_n.masked_fill(logprobs_n == -math.inf, 0)
    return -advantages_n * (logprobs_n - logprobs_n.detach())
