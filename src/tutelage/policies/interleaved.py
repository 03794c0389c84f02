"""Speculative Knowledge Distillation (SKD): the teacher replaces what it finds implausible."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import Tensor

from tutelage.errors import ConfigurationError
from tutelage.kernels import Composition
from tutelage.policies.base import Behaviour, Policy, check_not_negative, check_teacher, plain_number
from tutelage.policies.composed import Composed
from tutelage.schedules import Schedule, as_schedule, at_step

__all__ = ["Interleaved"]


@dataclass(frozen=True)
class Interleaved(Policy):
    """The student's token if it is among the teacher's K most probable ones, otherwise a token of the teacher.

    mu(a) = p(a) 1[a in R] + (1 - p(R)) q_tau(a),   R = top-K of q     (SKD, arXiv 2410.11325)

    The paper describes a procedure; this is its law, so it needs no engine of its own. Tokens that the teacher rules
    out are never in R, whatever K is. The student draws at temperature 1, as TRB's comparison does (arXiv 2605.31159).

    Fields:
      top_k: K, at least 1, a schedule's value rounded down. SKD uses 25 everywhere; at K = V only what the teacher
        rules out is replaced. (SKD's code can let K fall along the answer; here it may fall with the step.)
      teacher_temperature: tau >= 0 of the replacements; 0 takes the teacher's most probable token. SKD uses 0.2 to 0.5.
    """

    top_k: int | Schedule = 25
    teacher_temperature: float | Schedule = 0.2

    def __post_init__(self) -> None:
        is_whole = isinstance(self.top_k, int | Schedule) and not isinstance(self.top_k, bool)
        if not is_whole or as_schedule(self.top_k).bounds()[0] < 1:
            raise ConfigurationError(f"policy.top_k is {self.top_k!r}; expected a whole number of at least 1. Use 25.")
        check_not_negative(
            self.teacher_temperature,
            "policy.teacher_temperature",
            "a temperature cannot be negative. Use 0 for the teacher's most probable token.",
        )

    @property
    def needs_teacher(self) -> bool:
        return True

    def at(self, step: int) -> Policy:
        policy = replace(self, top_k=math.floor(self.top_k(step))) if isinstance(self.top_k, Schedule) else self
        return at_step(policy, step)

    def __call__(self, student_logits_BV: Tensor, teacher_logits_BV: Tensor | None) -> Behaviour:
        temperature = plain_number(self.teacher_temperature, "policy.teacher_temperature")
        top_k = math.floor(plain_number(self.top_k, "policy.top_k"))
        composition = Composition(temperature=temperature, top_k=top_k)
        return Composed(composition, student_logits_BV, check_teacher(teacher_logits_BV, self))
