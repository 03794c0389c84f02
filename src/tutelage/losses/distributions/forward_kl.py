"""The loss of plain knowledge distillation, taken at the student's prefixes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tutelage.distributions import kl_divergence
from tutelage.losses.base import DistributionLoss
from tutelage.losses.support import FULL_VOCABULARY, Support, seen_through
from tutelage.types import Target

__all__ = ["ForwardKL", "forward_kl"]


@dataclass(frozen=True)
class ForwardKL(DistributionLoss):
    """KL(target || student) per token: mode-covering, paid where the target puts its mass."""

    is_sum_over_events: ClassVar[bool] = True

    @property
    def generalised_jsd_share(self) -> float:
        return 0.0

    def between(self, student_logprobs: Tensor, target_logprobs: Tensor) -> Tensor:
        return kl_divergence(target_logprobs, student_logprobs)


def forward_kl(student_logits_BTV: Tensor, target_BTV: Tensor | Target, support: Support = FULL_VOCABULARY) -> Tensor:
    """KL(target || student) per token.

    KL_t = sum_e q_t(e) (log q_t(e) - log p_t(e)) over the support's events e     (GKD, arXiv 2306.13649, sec. 2)

    Arguments and shapes as in `reverse_kl`. +inf where the target has mass that the student rules out.
    """
    return ForwardKL().between(*seen_through(support, student_logits_BTV, target_BTV))
