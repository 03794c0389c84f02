"""One advantage that no reward speaks against."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tutelage.rewards.combinations.base import Combination, Ratings, State

__all__ = ["MinNorm"]


@dataclass(frozen=True)
class MinNorm(Combination):
    """The point nearest to 0 between the smallest and the largest of the rewards' own advantages.

        r = 0 where min_k x_k <= 0 <= max_k x_k, else the x_k nearest to 0;   x_k = w_k (r_k - mean_G r_k) / std_G r_k

    PAMA's closed form (arXiv 2508.07768): the convex combination of the x_k with the smallest square, in place of that
    of the gradients. With `positive_only`, as in the paper, x_k below 0 count as 0 first, so r = min_k max(x_k, 0):
    only answers that are above average in every respect are learned from. What we know of the paper leaves open whether
    its advantages are those of tokens, answers or batches; here they are those of answers within their groups.

    r is an advantage and not a reward, so it is PAMA where nothing is subtracted from it again: with the advantage
    `group_reward`, `baseline = "none"` and `scale = "none"`.

    Fields:
      positive_only: drop what is below average, PAMA's "Noon" clip.
    """

    positive_only: bool = True

    @property
    def compares_answers(self) -> bool:
        return True

    def combine(self, ratings: Ratings, state: State) -> Tensor:
        values_KB = ratings.members(normalised=True)
        if self.positive_only:
            values_KB = values_KB.clamp_min(0)
        return values_KB.amin(0).clamp_min(0) + values_KB.amax(0).clamp_max(0)
