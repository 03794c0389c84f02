"""Imitate a sampled token as far as the teacher prefers it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from tutelage.errors import check_inside
from tutelage.losses.base import TokenFacts
from tutelage.losses.tokens.clipped_surrogate import log_ratio
from tutelage.losses.tokens.corrected import CorrectedTokenLoss
from tutelage.losses.tokens.windowed import score_term
from tutelage.types import Fact

__all__ = ["GatedImitation"]


@dataclass(frozen=True)
class GatedImitation(CorrectedTokenLoss):
    """g (log target - log p),  g = sg(sigmoid(sharpness (log target - log p)))       (SDAR, arXiv 2605.15155)

    Its gradient is -g grad log p: it raises every sampled token, and the teacher acts through the gate alone. It stands
    beside a policy gradient, with a coefficient such as 0.1.

    Fields:
      sharpness: per nat, above 0; the paper has 5.
    """

    sharpness: float = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_inside(self.sharpness, "loss.sharpness", 0 < self.sharpness < math.inf, "a finite number above 0")

    @property
    def needs(self) -> frozenset[Fact]:
        return super().needs | {Fact.teacher_token}

    def on_tokens(self, logprobs_n: Tensor, facts: TokenFacts) -> Tensor:
        gap_n = -log_ratio(logprobs_n.detach(), facts.target_logprobs)
        gate_n = (self.sharpness * gap_n).sigmoid()
        return gate_n * gap_n + score_term(logprobs_n, gate_n)
