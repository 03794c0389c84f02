"""Off-policy distillation: the teacher writes the rollouts."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tutelage.kernels import Composition
from tutelage.policies.base import Behaviour, Policy, check_teacher
from tutelage.policies.composed import Composed

__all__ = ["Teacher"]


@dataclass(frozen=True)
class Teacher(Policy):
    """mu = q: the teacher at temperature 1."""

    @property
    def needs_teacher(self) -> bool:
        return True

    def __call__(self, student_logits_BV: Tensor, teacher_logits_BV: Tensor | None) -> Behaviour:
        return Composed(Composition(), student_logits_BV, check_teacher(teacher_logits_BV, self))
