"""Plain on-policy distillation: the student writes its own rollouts."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tutelage.policies.base import Behaviour, Policy, Softmax

__all__ = ["Student"]


@dataclass(frozen=True)
class Student(Policy):
    """mu = p: the student at temperature 1. What every warm-up ends in."""

    @property
    def needs_teacher(self) -> bool:
        return False

    def __call__(self, student_logits_BV: Tensor, teacher_logits_BV: Tensor | None = None) -> Behaviour:
        return Softmax(student_logits_BV)
