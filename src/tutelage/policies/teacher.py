"""Off-policy distillation: the teacher writes the rollouts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage.distributions import kl_divergence, normalise
from tutelage.policies.base import Behaviour, Policy, check_teacher

__all__ = ["Teacher"]


@dataclass(frozen=True)
class Teacher(Policy):
    """mu = q: the teacher at temperature 1."""

    @property
    def needs_teacher(self) -> bool:
        return True

    def __call__(self, student_logits_BV: Tensor, teacher_logits_BV: Tensor | None) -> Behaviour:
        logprobs_BV = normalise(check_teacher(teacher_logits_BV, self))
        kl_to_student_B = kl_divergence(logprobs_BV, normalise(student_logits_BV))
        return Behaviour(logprobs_BV, {"blend": torch.ones_like(kl_to_student_B), "kl_to_student": kl_to_student_B})
