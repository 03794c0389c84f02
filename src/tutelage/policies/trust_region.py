"""Trust-Region behaviour Blending (TRB): as close to the teacher as a KL budget around the student allows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from tutelage.distributions import gather_logprobs, geometric_blend, normalise, wide_dtype
from tutelage.kernels import BlendPoint, Judged, blend_point, draw_blend, has_kernels, judge_trust_region
from tutelage.policies.base import Behaviour, Policy, check_not_negative, check_teacher, plain_number
from tutelage.policies.student import Student
from tutelage.schedules import Schedule, as_schedule

__all__ = ["TrustRegion"]


@dataclass(frozen=True)
class TrustRegion(Policy):
    """mu = argmin KL(mu || q) subject to KL(mu || p) <= kl_radius, at every prefix.

    TRB of arXiv 2605.31159 is `TrustRegion(Linear(eps_0, 0.0, K))`; its fixed-budget baseline is a plain number.

    Fields:
      kl_radius: nats per token, >= 0 (eps of the paper, which tries 0.001 to 0.05). At 0 this is the student, and the
        teacher is not used.
    """

    kl_radius: float | Schedule

    def __post_init__(self) -> None:
        check_not_negative(
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

    def __call__(self, student_logits_BV: Tensor, teacher_logits_BV: Tensor | None) -> Behaviour:
        kl_radius = plain_number(self.kl_radius, "policy.kl_radius")
        if not self.needs_teacher:
            return Student()(student_logits_BV)
        return _Blended(student_logits_BV, check_teacher(teacher_logits_BV, self), kl_radius)


class _Blended(Behaviour):
    """A geometric blend, kept as its point between two rows of logits; whole rows are made when they are asked for.

    Where there are kernels the point is found when it is asked for, or together with a judgement of drafts.
    """

    def __init__(self, student_logits_BV: Tensor, teacher_logits_BV: Tensor, kl_radius: float) -> None:
        self.student_logits_BV, self.teacher_logits_BV = student_logits_BV, teacher_logits_BV
        self.kl_radius = kl_radius
        self._point: BlendPoint | None = None

    @property
    def point(self) -> BlendPoint:
        if self._point is None:
            self._point = blend_point(self.student_logits_BV, self.teacher_logits_BV, self.kl_radius)
        return self._point

    @cached_property
    def diagnostics(self) -> dict[str, Tensor]:  # type: ignore[override]
        dtype = wide_dtype(self.student_logits_BV)
        return {"blend": self.point.blend_B.to(dtype), "kl_to_student": self.point.kl_to_student_B.to(dtype)}

    @cached_property
    def logprobs_BV(self) -> Tensor:
        return self.rows((...,))

    def logprobs_of(self, tokens_B: Tensor) -> Tensor:
        student_B, teacher_B = (
            gather_logprobs(logits, tokens_B) for logits in (self.student_logits_BV, self.teacher_logits_BV)
        )
        return self.point.logprobs(student_B, teacher_B).to(self.diagnostics["blend"].dtype)

    def rows(self, index: tuple[Any, ...]) -> Tensor:
        student_RV, teacher_RV = (
            normalise(logits[index]) for logits in (self.student_logits_BV, self.teacher_logits_BV)
        )
        return geometric_blend(student_RV, teacher_RV, self.point.blend_B[index])

    def draw(self, uniforms_B: Tensor) -> Tensor:
        return draw_blend(self.student_logits_BV, self.teacher_logits_BV, self.point, uniforms_B)

    def judged(self, drafts_B: Tensor, keeps_B: Tensor) -> Judged | None:
        if not has_kernels(self.student_logits_BV.device):
            return None
        self._point, judged = judge_trust_region(
            self.student_logits_BV, self.teacher_logits_BV, self.kl_radius, drafts_B, keeps_B
        )
        return judged
