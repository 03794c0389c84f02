"""Clipped importance weights instead of clipped updates: every token keeps its gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from tutelage.advantages import GROUP_REWARD, Advantage
from tutelage.errors import check_inside
from tutelage.losses.base import TokenFacts
from tutelage.losses.tokens.clipped_surrogate import log_ratio, ratio_statistics
from tutelage.losses.tokens.corrected import CorrectedTokenLoss
from tutelage.losses.tokens.windowed import score_term
from tutelage.types import Fact

__all__ = ["CISPO"]


@dataclass(frozen=True)
class CISPO(CorrectedTokenLoss):
    """-sg(clip(w, lowest, largest)) A, with the gradient -sg(clip(w)) A grad log p      (MiniMax-M1, arXiv 2506.13585)

    w = p now / p at the rollout. The bounds are those of the ratio itself, as TRL's `epsilon_high` is for this loss;
    verl clamps w to 1 - clip_low .. 1 + clip_high. A bound below 1 would make all updates smaller, unseen, and is
    refused.

    Fields:
      ratio_cap: largest w, at least 1; TRL's documentation has 5.
      ratio_floor: smallest w, from 0 to 1.
      advantage: A.
      correction, ...: see `CorrectedTokenLoss`.
    """

    advantage: Advantage = GROUP_REWARD
    ratio_cap: float = 5.0
    ratio_floor: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        is_inside = 1 <= self.ratio_cap < math.inf
        check_inside(self.ratio_cap, "loss.ratio_cap", is_inside, "a finite ratio of at least 1, not a distance from 1")
        check_inside(self.ratio_floor, "loss.ratio_floor", 0 <= self.ratio_floor <= 1, "a ratio from 0 to 1")

    @property
    def needs(self) -> frozenset[Fact]:
        return super().needs | {Fact.student_token}

    def on_tokens(self, logprobs_n: Tensor, facts: TokenFacts) -> Tensor:
        ratios_n = log_ratio(logprobs_n, facts.student_logprobs).detach().exp()
        advantages_n = ratios_n.clamp(self.ratio_floor, self.ratio_cap) * facts.advantages
        return score_term(logprobs_n, advantages_n) - advantages_n

    def statistics(self, logprobs_n: Tensor, facts: TokenFacts) -> dict[str, Tensor]:
        """Which tokens count less or more than w, whatever the sign of their advantage."""
        ratios_n = log_ratio(logprobs_n, facts.student_logprobs).exp()
        clipped = {"clip_share_high": ratios_n > self.ratio_cap, "clip_share_low": ratios_n < self.ratio_floor}
        return {**clipped, **ratio_statistics(ratios_n, facts)}
