"""The loss of on-policy distillation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tutelage.distributions import kl_divergence
from tutelage.losses.base import DistributionLoss
from tutelage.losses.support import FULL_VOCABULARY, Support, seen_through
from tutelage.types import Target

__all__ = ["ReverseKL", "reverse_kl"]


@dataclass(frozen=True)
class ReverseKL(DistributionLoss):
    """KL(student || target) per token: mode-seeking, paid where the student puts its mass."""

    is_sum_over_events: ClassVar[bool] = True

    @property
    def generalised_jsd_share(self) -> float:
        return 1.0

    def between(self, student_logprobs: Tensor, target_logprobs: Tensor) -> Tensor:
        return kl_divergence(student_logprobs, target_logprobs)


def reverse_kl(student_logits_BTV: Tensor, target_BTV: Tensor | Target, support: Support = FULL_VOCABULARY) -> Tensor:
    """KL(student || target) per token.

    KL_t = sum_e p_t(e) (log p_t(e) - log q_t(e)) over the support's events e     (OPD, arXiv 2604.13016, sec. 2)

    Args:
      student_logits_BTV: student logits or log-probabilities; any leading axes.
      target_BTV: target logits or log-probabilities over the vocabulary, or a `Target`.
      support: `FullVocabulary()`, `StudentTopK(k, rest)`, `TeacherTopK(k, rest)` or `UnionTopK(k, rest)`.
    Returns:
      [B, T] in nats. +inf where the student has mass that the target rules out. No gradient reaches the target.
    """
    return ReverseKL().between(*seen_through(support, student_logits_BTV, target_BTV))
