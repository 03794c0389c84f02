"""A constant step from the student towards the teacher, whatever it costs in KL."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tutelage.kernels import Composition
from tutelage.policies.base import Behaviour, Policy, check_share, check_teacher, plain_number
from tutelage.policies.composed import Composed
from tutelage.policies.student import Student
from tutelage.schedules import Schedule, as_schedule

__all__ = ["FixedBlend"]


@dataclass(frozen=True)
class FixedBlend(Policy):
    """mu ∝ p^(1-b) q^b with the same b at every prefix; TRB without its trust region.

    Fields:
      blend: b in [0, 1] (beta of arXiv 2605.31159). At 0 this is the student, and the teacher is not used.
    """

    blend: float | Schedule

    def __post_init__(self) -> None:
        check_share(self.blend, "policy.blend")

    @property
    def needs_teacher(self) -> bool:
        _, largest = as_schedule(self.blend).bounds()
        return largest > 0

    def at(self, step: int) -> Policy:
        policy = super().at(step)
        return policy if policy.needs_teacher else Student()

    def __call__(self, student_logits_BV: Tensor, teacher_logits_BV: Tensor | None) -> Behaviour:
        blend = plain_number(self.blend, "policy.blend")
        if not self.needs_teacher:
            return Student()(student_logits_BV)
        return Composed(Composition(blend=blend), student_logits_BV, check_teacher(teacher_logits_BV, self))
