"""Between forward and reverse KL: both are taken to a mixture of student and target, so the value is bounded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tutelage.distributions import arithmetic_blend, kl_divergence
from tutelage.losses.base import DistributionLoss, check_share
from tutelage.losses.support import FULL_VOCABULARY, Support, seen_through
from tutelage.types import Target

__all__ = ["JensenShannon", "jsd"]


@dataclass(frozen=True)
class JensenShannon(DistributionLoss):
    """b KL(target || m) + (1 - b) KL(student || m),   m = b target + (1 - b) student     (GKD, arXiv 2306.13649)

    At b = 0 and b = 1 the formula is 0 for any two distributions. Divided by b and by 1 - b it tends to KL(target ||
    student) and KL(student || target) there, so these ends are the forward and the reverse KL, as in GKD.

    Fields:
      target_share: b in [0, 1], beta of GKD.
    """

    is_sum_over_events: ClassVar[bool] = True

    target_share: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share(self.target_share, "divergence.target_share")

    @property
    def generalised_jsd_share(self) -> float:
        return self.target_share

    def between(self, student_logprobs: Tensor, target_logprobs: Tensor) -> Tensor:
        share = self.target_share
        if share == 0:
            return kl_divergence(target_logprobs, student_logprobs)
        if share == 1:
            return kl_divergence(student_logprobs, target_logprobs)
        mixture = arithmetic_blend(student_logprobs, target_logprobs, share)
        to_target, to_student = kl_divergence(target_logprobs, mixture), kl_divergence(student_logprobs, mixture)
        return share * to_target + (1 - share) * to_student


def jsd(
    student_logits_BTV: Tensor,
    target_BTV: Tensor | Target,
    support: Support = FULL_VOCABULARY,
    target_share: float = 0.5,
) -> Tensor:
    """Generalised Jensen-Shannon divergence per token, see `JensenShannon`; arguments as in `reverse_kl`.

    Never infinite for 0 < target_share < 1, and symmetric at 0.5.
    """
    return JensenShannon(target_share=target_share).between(*seen_through(support, student_logits_BTV, target_BTV))
