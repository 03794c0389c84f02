"""How do several models become one teacher?  Pure functions from their distributions to one.

Axis letters: B any leading axes, V vocabulary.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage.distributions import kl_divergence, log_linear
from tutelage.errors import ConfigurationError

__all__ = ["DynamicFusion", "FixedFusion", "Fusion"]


@dataclass(frozen=True)
class Fusion(ABC):
    """Makes one next-token distribution of those of several models."""

    @abstractmethod
    def __call__(self, parts_logprobs_BV: Sequence[Tensor]) -> Tensor:
        """log of the fused distribution, [..., V], from the normalised log-probabilities of each model."""

    @abstractmethod
    def check(self, num_models: int) -> None:
        """Refuse a number of models that this cannot fuse."""


@dataclass(frozen=True)
class FixedFusion(Fusion):
    """q ∝ Π_i p_i^(w_i), with the same weights at every prefix.

    Weights (1, a, -a) for a large model, a tuned small one and its base are softmax(z_L + a (z_ft - z_base)), the
    static fusion of arXiv 2406.15480 (proxy tuning); positive weights that sum to 1 are a log-linear pool of teachers.

    Fields:
      weights: w_i, one per model, of any sign, not all 0.
    """

    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if not any(self.weights) or not all(map(math.isfinite, self.weights)):
            raise ConfigurationError(
                f"the weights of fused teachers are {self.weights}; expected finite numbers, not all 0. "
                "Set teacher.weight and the weight of each of teacher.experts."
            )

    def check(self, num_models: int) -> None:
        if num_models != len(self.weights):
            raise ConfigurationError(f"{num_models} models were given {len(self.weights)} weights; expected one each.")

    def __call__(self, parts_logprobs_BV: Sequence[Tensor]) -> Tensor:
        return log_linear(parts_logprobs_BV, self.weights)


@dataclass(frozen=True)
class DynamicFusion(Fusion):
    """softmax(z_L + a (z_ft - z_base)), with a chosen at every prefix so that L moves as far as the small model did.

    a = argmin [KL(q_a || p_L) - KL(p_ft || p_base)]^2 + [KL(p_L || q_a) - KL(p_base || p_ft)]^2   (arXiv 2406.15480)

    over a grid; the smallest of equals, so 0 where the expert learned nothing. The objective and the grid were not
    found in the paper's text but recalled, so take them as our reading of it. For three models: large, tuned, base.

    Fields:
      largest, increment: the grid 0, increment, ..., largest.
    """

    largest: float = 2.0
    increment: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.increment <= self.largest < math.inf:
            raise ConfigurationError(
                f"a search up to {self.largest} in steps of {self.increment} tries nothing; expected 0 < "
                "increment <= largest. Use 2 and 0.1."
            )

    def check(self, num_models: int) -> None:
        if num_models != 3:
            raise ConfigurationError(
                f"the dynamic weight fuses a large model, a tuned small one and its base; got {num_models} models. "
                "Give teacher.experts one entry with a base, or use fixed weights."
            )

    def __call__(self, parts_logprobs_BV: Sequence[Tensor]) -> Tensor:
        large_BV, tuned_BV, base_BV = parts_logprobs_BV
        there_B, back_B = kl_divergence(tuned_BV, base_BV), kl_divergence(base_BV, tuned_BV)

        def miss(fused_BV: Tensor) -> Tensor:
            there, back = kl_divergence(fused_BV, large_BV) - there_B, kl_divergence(large_BV, fused_BV) - back_B
            return there**2 + back**2

        best_BV = log_linear(parts_logprobs_BV, (1, 0, 0))
        least_B = miss(best_BV)
        for number in range(1, round(self.largest / self.increment) + 1):
            weight = number * self.increment
            fused_BV = log_linear(parts_logprobs_BV, (1, weight, -weight))
            miss_B = miss(fused_BV)
            is_better_B = miss_B < least_B
            least_B = torch.where(is_better_B, miss_B, least_B)
            best_BV = torch.where(is_better_B[..., None], fused_BV, best_BV)
        return best_BV
