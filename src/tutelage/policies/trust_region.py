"""Trust-Region behaviour Blending (TRB): as close to the teacher as a KL budget around the student allows."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tutelage.distributions import trust_region_blend
from tutelage.policies.base import Policy, Proposal, plain_number, refuse_negative, require_teacher
from tutelage.policies.student import Student
from tutelage.schedules import Schedule, as_schedule

__all__ = ["TrustRegion"]


@dataclass(frozen=True)
class TrustRegion(Policy):
    """mu = argmin KL(mu || q) subject to KL(mu || p) <= kl_radius, at every prefix.

    TRB of arXiv 2605.31159 is `TrustRegion(Linear(eps_0, 0.0, K))`; its fixed-budget baseline is a plain number.

    Fields:
      kl_radius: nats per token, >= 0 (eps of the paper, which tries 0.001 to 0.05). At 0 this is the student, and the
        teacher is not asked.
    """

    kl_radius: float | Schedule

    def __post_init__(self) -> None:
        refuse_negative(
            self.kl_radius,
            "policy.kl_radius",
            "a KL radius cannot be negative. Use 0 for pure student rollouts.",
        )

    @property
    def needs_teacher(self) -> bool:
        _, largest = as_schedule(self.kl_radius).bounds()
        return largest > 0

    def at(self, step: int) -> Policy:
        policy = super().at(step)
        return policy if policy.needs_teacher else Student()

    def __call__(self, student_logits_BV: Tensor, teacher_logits_BV: Tensor | None) -> Proposal:
        kl_radius = plain_number(self.kl_radius, "policy.kl_radius")
        if not self.needs_teacher:
            return Student()(student_logits_BV)
        blend = trust_region_blend(student_logits_BV, require_teacher(teacher_logits_BV, self), kl_radius)
        return Proposal(blend.logprobs_BV, {"blend": blend.blend_B, "kl_to_student": blend.kl_to_student_B})
