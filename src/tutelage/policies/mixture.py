"""Every token comes from the teacher with a given probability, and from the student otherwise."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tutelage.kernels import Composition
from tutelage.policies.base import Behaviour, Policy, check_share, check_teacher, plain_number
from tutelage.policies.composed import Composed
from tutelage.policies.student import Student
from tutelage.schedules import Schedule, as_schedule

__all__ = ["Mixture"]


@dataclass(frozen=True)
class Mixture(Policy):
    """mu = (1 - w) p + w q at every prefix: the arithmetic counterpart of `FixedBlend`.

    Unlike a geometric blend it keeps whatever either model allows. The student's drafts stay with probability at least
    1 - w.

    Fields:
      weight: w in [0, 1]. At 0 this is the student, and the teacher is not used.
    """

    weight: float | Schedule

    def __post_init__(self) -> None:
        check_share(self.weight, "policy.weight")

    @property
    def needs_teacher(self) -> bool:
        _, largest = as_schedule(self.weight).bounds()
        return largest > 0

    def at(self, step: int) -> Policy:
        policy = super().at(step)
        return policy if policy.needs_teacher else Student()

    def __call__(self, student_logits_BV: Tensor, teacher_logits_BV: Tensor | None) -> Behaviour:
        weight = plain_number(self.weight, "policy.weight")
        if not self.needs_teacher:
            return Student()(student_logits_BV)
        return Composed(Composition(weight=weight), student_logits_BV, check_teacher(teacher_logits_BV, self))
