"""Weights that follow how fast each reward improves (RECAP)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev

import torch
from torch import Tensor

from tutelage.errors import ConfigurationError, check_inside
from tutelage.rewards.combinations.base import Combination, Ratings, State

__all__ = ["Progress"]

MIN_LOSS = 1e-6  # a reward that is as good as it can be has no loss to divide by


@dataclass(frozen=True)
class Progress(Combination):
    """r = Σ_k l_k w_k r_k: a reward that improves fast or is steady counts less, one that is stuck or unsteady more.

        l_k = K softmax_k(s_k / T),   s_k = mu_k / mu'_k + sd_k / (mu_k + mu'_k)        (RECAP, arXiv 2510.21978)

    mu_k and sd_k are mean and deviation (of the population) of the last W losses of reward k, mu'_k the mean of the W
    before; K rewards. The weights average 1, and are all 1 until there are 2W losses. Which loss a reward has, and W,
    the source that we know leaves open; here the loss is `best` minus the batch's mean reward, and at least 1e-6, since
    the ratios need something positive. A policy-gradient loss would not do: its mean is about 0.

    Fields:
      window: W, 1 step or more.
      temperature: T, above 0. At 5 the weights of two rewards differ by about a fifth at most.
      best: the largest value that a reward can have.
    """

    window: int = 10
    temperature: float = 5.0
    best: float = 1.0

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ConfigurationError(f"reward_combination.window is {self.window}; expected 1 step or more.")
        warm, best = self.temperature, self.best
        check_inside(warm, "reward_combination.temperature", 0 < warm < math.inf, "a finite number above 0")
        check_inside(best, "reward_combination.best", math.isfinite(best), "a finite number")

    def initial_state(self, labels: Sequence[str]) -> State:
        return {"losses": {label: [] for label in labels}}

    def combine(self, ratings: Ratings, state: State) -> Tensor:
        weights = self.weights(state)
        return torch.stack([weights[label] * values_B for label, values_B in ratings.weighted().items()]).sum(0)

    def next_state(self, ratings: Ratings, state: State) -> State:
        means, losses = ratings.means, state["losses"]
        return {
            "losses": {
                label: [*losses[label], max(self.best - mean, MIN_LOSS)][-2 * self.window :]
                for label, mean in means.items()
            }
        }

    def metrics(self, ratings: Ratings, state: State) -> dict[str, float]:
        return {f"reward_multiplier/{label}": weight for label, weight in self.weights(state).items()}

    def weights(self, state: State) -> dict[str, float]:
        """l_k by label."""
        losses: dict[str, list[float]] = state["losses"]
        if any(len(history) < 2 * self.window for history in losses.values()):
            return dict.fromkeys(losses, 1.0)
        scores = [self._score(history) / self.temperature for history in losses.values()]
        shares = torch.tensor(scores, dtype=torch.float64).softmax(0)
        return {label: len(losses) * share for label, share in zip(losses, shares.tolist(), strict=True)}

    def _score(self, history: Sequence[float]) -> float:
        before, last = history[: self.window], history[self.window :]
        return fmean(last) / fmean(before) + pstdev(last) / (fmean(last) + fmean(before))
