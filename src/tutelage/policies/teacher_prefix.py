"""Teacher guidance (TrOPD): the teacher begins every answer, and the student continues it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage.kernels import Composition
from tutelage.policies.base import Behaviour, Policy, check_not_negative, check_teacher, plain_number
from tutelage.policies.composed import Composed
from tutelage.policies.student import Student
from tutelage.schedules import Schedule, as_schedule, resolve

__all__ = ["TeacherPrefix"]


@dataclass(frozen=True)
class TeacherPrefix(Policy):
    """mu = q for the first n tokens of an answer, and p after them.

    TrOPD (arXiv 2606.01249) lets n fall by a cosine from the length of a whole teacher answer to 0 within 200 steps:
    `TeacherPrefix(Cosine(length, 0.0, 200))`, rounded down. There the length is that of an answer written before; here
    the teacher writes while sampling and its length is not known yet, so n is the same for all answers of a step.

    Fields:
      num_tokens: n >= 0, rounded down. Below 1 this is the student, and the teacher is not used.
    """

    num_tokens: float | Schedule

    def __post_init__(self) -> None:
        check_not_negative(self.num_tokens, "policy.num_tokens", "a count cannot be negative. Use 0 for the student.")

    @property
    def needs_teacher(self) -> bool:
        return as_schedule(self.num_tokens).bounds()[1] >= 1

    def at(self, step: int) -> Policy:
        num_tokens = math.floor(resolve(self.num_tokens, step))
        return TeacherPrefix(num_tokens) if num_tokens else Student()

    def __call__(self, student_logits_BV: Tensor, teacher_logits_BV: Tensor | None) -> Behaviour:
        return self.propose(student_logits_BV, teacher_logits_BV)

    def propose(
        self, student_logits_BV: Tensor, teacher_logits_BV: Tensor | None, positions_B: Tensor | None = None
    ) -> Behaviour:
        """The distribution at places of an answer; without them, at its first token."""
        if not self.needs_teacher:
            return Student()(student_logits_BV)
        first_B = torch.zeros(student_logits_BV.shape[:-1], device=student_logits_BV.device)
        num_tokens = math.floor(plain_number(self.num_tokens, "policy.num_tokens"))
        is_prefix_B = (first_B if positions_B is None else positions_B) < num_tokens
        return Composed(Composition(blend=is_prefix_B), student_logits_BV, check_teacher(teacher_logits_BV, self))
