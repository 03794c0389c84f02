"""A constant step from the student towards the teacher, whatever it costs in KL."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tutelage.distributions import geometric_blend, kl_divergence, normalise
from tutelage.policies.base import Behaviour, Policy, check_share, check_teacher, plain_number
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
        student_BV = normalise(student_logits_BV)
        if not self.needs_teacher:
            return Behaviour(student_BV)
        logprobs_BV = geometric_blend(student_BV, normalise(check_teacher(teacher_logits_BV, self)), blend)
        kl_to_student_B = kl_divergence(logprobs_BV, student_BV)
        return Behaviour(
            logprobs_BV,
            {"blend": kl_to_student_B.new_full(kl_to_student_B.shape, blend), "kl_to_student": kl_to_student_B},
        )
