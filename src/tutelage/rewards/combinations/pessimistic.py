"""An ensemble of rewards that are to mean the same, read with caution: what its members disagree about counts less.

Every member enters as w_i r_i. Members must be on one scale: weights can bring them there, or `normalised`, which
normalises each one among the answers to a prompt. (arXiv 2310.02743)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from tutelage.errors import ConfigurationError
from tutelage.rewards.combinations.base import Combination, Ratings, State
from tutelage.schedules import Schedule, plain_number

__all__ = ["LowerConfidenceBound", "WorstCase"]


@dataclass(frozen=True)
class WorstCase(Combination):
    """r = min_i w_i r_i: worst-case optimisation, WCO."""

    normalised: bool = False

    @property
    def compares_answers(self) -> bool:
        return self.normalised

    def combine(self, ratings: Ratings, state: State) -> Tensor:
        return ratings.members(normalised=self.normalised).amin(0)


@dataclass(frozen=True)
class LowerConfidenceBound(Combination):
    """r = mean_i x_i - c d_i x_i with x_i = w_i r_i; d is the deviation over the members, or their variance.

    With `penalty = "variance"` this is uncertainty-weighted optimisation, UWO. Both are those of the population, which
    divide by the number of members, so one member alone has none; the paper's code divides so for best-of-n and by one
    less for PPO. With the variance the bound may fall as one member rises: from 2 c (x_i - mean) > 1 on.

    Fields:
      coefficient: c, 0 or more; 0 = the mean. The paper's PPO has 0.1 for the variance.
      penalty: "deviation" or "variance".
      normalised: normalise each member among the answers to a prompt first.
    """

    coefficient: float | Schedule = 1.0
    penalty: str = "deviation"
    normalised: bool = False

    def __post_init__(self) -> None:
        low, high = self.coefficient.bounds() if isinstance(self.coefficient, Schedule) else (self.coefficient,) * 2
        if not (low >= 0 and high < math.inf):
            raise ConfigurationError(
                f"reward_combination.coefficient is {self.coefficient}; expected a finite number of at least 0. Use 0 "
                "for the mean."
            )
        if self.penalty not in ("deviation", "variance"):
            raise ConfigurationError(
                f"reward_combination.penalty is {self.penalty!r}; expected 'deviation' or 'variance'. Leave it out for "
                "'deviation'."
            )

    @property
    def compares_answers(self) -> bool:
        return self.normalised

    def combine(self, ratings: Ratings, state: State) -> Tensor:
        members_KB = ratings.members(normalised=self.normalised)
        variance_B = members_KB.var(0, correction=0)
        penalty_B = variance_B if self.penalty == "variance" else variance_B.sqrt()
        return members_KB.mean(0) - plain_number(self.coefficient, "reward_combination.coefficient") * penalty_B
