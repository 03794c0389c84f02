"""Sums of rewards, with the weights that the run file gives them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tutelage.rewards.combinations.base import Combination, Ratings, State

__all__ = ["NormalisedSum", "WeightedSum"]


@dataclass(frozen=True)
class WeightedSum(Combination):
    """r = Σ w_i r_i."""

    def combine(self, ratings: Ratings, state: State) -> Tensor:
        return ratings.members().sum(0)


@dataclass(frozen=True)
class NormalisedSum(Combination):
    """r = Σ w_i (r_i - mean_G r_i) / (std_G r_i + 1e-4), each reward normalised among the answers to a prompt first.

    So a reward on a large scale does not drown the others, and one that is the same for all answers to a prompt has no
    part there. Sample deviation; 0 in groups of one. (TRL 1.16, `normalize_then_sum`)
    """

    @property
    def compares_answers(self) -> bool:
        return True

    def combine(self, ratings: Ratings, state: State) -> Tensor:
        return ratings.members(normalised=True).sum(0)
