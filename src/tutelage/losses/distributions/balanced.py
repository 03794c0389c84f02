"""Forward and reverse KL, weighed by who is more certain."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage.distributions import entropy, kl_divergence
from tutelage.errors import check_inside
from tutelage.losses.base import DistributionLoss, check_share

__all__ = ["Balanced"]


@dataclass(frozen=True)
class Balanced(DistributionLoss):
    """w KL(target || student) + (1 - w) KL(student || target),   w = sigmoid(logit(b) + s (H(target) - H(student)))

    After BD-KD (arXiv 2212.12965), which weighs both directions by the gap of the entropies. How is not known to us, so
    the rule is ours: a student more certain than its target gets more forward KL, which spreads it. The weight is
    detached. The entropies are those of the support's events; on a top-k both are too low by what the tail hides.

    Fields:
      forward_share: b in [0, 1], w at equal entropies; 0 and 1 are the reverse and the forward KL throughout.
      sharpness: s per nat, 0 or more; 0 keeps w at b, which makes 0.5 half of Jeffreys' divergence.
    """

    forward_share: float = 0.5
    sharpness: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share(self.forward_share, "divergence.forward_share")
        check_inside(
            self.sharpness, "divergence.sharpness", 0 <= self.sharpness < math.inf, "a finite number of at least 0"
        )

    def between(self, student_logprobs: Tensor, target_logprobs: Tensor) -> Tensor:
        forward = kl_divergence(target_logprobs, student_logprobs)
        reverse = kl_divergence(student_logprobs, target_logprobs)
        if self.forward_share in (0, 1):  # 0 · inf
            return forward if self.forward_share == 1 else reverse
        # Learning to change the weight instead of the distribution would be a way out.
        gap = entropy(target_logprobs) - entropy(student_logprobs.detach())
        logit = math.log(self.forward_share) - math.log1p(-self.forward_share)
        weight = torch.sigmoid(logit + self.sharpness * gap)
        # A share that has been rounded to 0 must also silence what is infinite.
        return torch.where(weight > 0, weight * forward, 0) + torch.where(weight < 1, (1 - weight) * reverse, 0)
