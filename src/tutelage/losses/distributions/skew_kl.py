"""KL against a mixture: a little of the first distribution in the second keeps the ratio bounded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tutelage.distributions import arithmetic_blend, kl_divergence
from tutelage.errors import check_inside
from tutelage.losses.base import DistributionLoss
from tutelage.losses.support import FULL_VOCABULARY, Support, seen_through
from tutelage.types import Target

__all__ = ["SkewForwardKL", "SkewReverseKL", "skew_forward_kl", "skew_reverse_kl"]


@dataclass(frozen=True)
class SkewKL(DistributionLoss):
    """What both directions share.

    Fields:
      skew: s in [0, 1), the first distribution's share in the mixture; 0 is the plain KL. At most -log s nats.
    """

    is_sum_over_events: ClassVar[bool] = True

    skew: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_inside(
            self.skew, "divergence.skew", 0 <= self.skew < 1, "a share from 0 to below 1, where nothing is left of it"
        )


@dataclass(frozen=True)
class SkewForwardKL(SkewKL):
    """KL(target || s target + (1 - s) student) per token     (DistiLLM, arXiv 2402.03898, sec. 3.1)"""

    def between(self, student_logprobs: Tensor, target_logprobs: Tensor) -> Tensor:
        return kl_divergence(target_logprobs, arithmetic_blend(student_logprobs, target_logprobs, self.skew))


@dataclass(frozen=True)
class SkewReverseKL(SkewKL):
    """KL(student || s student + (1 - s) target) per token     (DistiLLM, arXiv 2402.03898, sec. 3.1)"""

    def between(self, student_logprobs: Tensor, target_logprobs: Tensor) -> Tensor:
        return kl_divergence(student_logprobs, arithmetic_blend(target_logprobs, student_logprobs, self.skew))


def skew_forward_kl(
    student_logits_BTV: Tensor, target_BTV: Tensor | Target, support: Support = FULL_VOCABULARY, skew: float = 0.1
) -> Tensor:
    """KL(target || s target + (1 - s) student) per token; arguments as in `reverse_kl`."""
    return SkewForwardKL(skew=skew).between(*seen_through(support, student_logits_BTV, target_BTV))


def skew_reverse_kl(
    student_logits_BTV: Tensor, target_BTV: Tensor | Target, support: Support = FULL_VOCABULARY, skew: float = 0.1
) -> Tensor:
    """KL(student || s student + (1 - s) target) per token; arguments as in `reverse_kl`."""
    return SkewReverseKL(skew=skew).between(*seen_through(support, student_logits_BTV, target_BTV))
