"""The target's most probable event and the rest as two terms, the rest rescaled, so that neither hides the other."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage.distributions import entropy, kl_divergence, temper
from tutelage.errors import check_inside
from tutelage.losses.base import DistributionLoss

__all__ = ["NormalisedKD"]


@dataclass(frozen=True)
class NormalisedKD(DistributionLoss):
    """- q(c) log p(c) - weight · t^2 · sum_{e != c} q'(e) log p'(e)     (NKD, arXiv 2303.13005)

    p' and q' are student and target over all events but c, at temperature t. In the paper c is the labelled class,
    which a rollout does not have; here it is the target's most probable event. These are cross-entropies: they are
    never negative, but not 0 for equal distributions, and the first term always asks for more of c.

    Fields:
      others_weight: gamma of the paper.
      temperature: t, lambda of the paper.
    """

    others_weight: float = 1.5
    temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        is_inside = 0 <= self.others_weight < math.inf
        check_inside(self.others_weight, "divergence.others_weight", is_inside, "a finite number of at least 0")
        check_inside(
            self.temperature, "divergence.temperature", 0 < self.temperature < math.inf, "a finite number above 0"
        )

    def between(self, student_logprobs: Tensor, target_logprobs: Tensor) -> Tensor:
        choice = target_logprobs.argmax(-1, keepdim=True)
        target_choice, student_choice = (
            each.gather(-1, choice)[..., 0] for each in (target_logprobs, student_logprobs)
        )
        # A target without mass on the support has no choice: 0 · inf.
        of_choice = -target_choice.exp() * student_choice.masked_fill(target_choice == -math.inf, 0)
        if self.others_weight == 0:  # 0 · inf
            return of_choice
        others = [logprobs.scatter(-1, choice, -math.inf) for logprobs in (student_logprobs, target_logprobs)]
        nothing_left, is_out_of_reach = ((each == -math.inf).all(-1) for each in reversed(others))
        is_void = (nothing_left | is_out_of_reach)[..., None]
        # Rows without other events have nothing to rescale: they go through as zeros, and out as what they are.
        student, target = (temper(each.masked_fill(is_void, 0), self.temperature) for each in others)
        of_others = kl_divergence(target, student) + entropy(target)
        of_others = torch.where(is_out_of_reach, math.inf, of_others).masked_fill(nothing_left, 0)
        return of_choice + self.others_weight * self.temperature**2 * of_others
