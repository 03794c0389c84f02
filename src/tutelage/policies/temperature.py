"""The student at another temperature: the warm-up that needs no teacher, and greedy decoding."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tutelage.kernels import Composition
from tutelage.policies.base import Behaviour, Policy, check_not_negative, plain_number
from tutelage.policies.composed import Composed
from tutelage.policies.student import Student
from tutelage.schedules import Schedule

__all__ = ["Temperature"]


@dataclass(frozen=True)
class Temperature(Policy):
    """mu ∝ p^(1 / temperature). The temperature warm-up of arXiv 2605.31159 rises from 0.8-0.95 to 1.

    Fields:
      temperature: >= 0. At 1 this is the student; at 0 all mass is on the most probable token, the first among equals.
    """

    temperature: float | Schedule

    def __post_init__(self) -> None:
        check_not_negative(
            self.temperature,
            "policy.temperature",
            "a temperature cannot be negative. Use 0 for greedy decoding, 1 for the student itself.",
        )

    @property
    def needs_teacher(self) -> bool:
        return False

    def at(self, step: int) -> Policy:
        policy = super().at(step)
        return Student() if policy == Temperature(1) else policy

    def __call__(self, student_logits_BV: Tensor, teacher_logits_BV: Tensor | None = None) -> Behaviour:
        temperature = plain_number(self.temperature, "policy.temperature")
        return Composed(Composition(temperature=temperature), student_logits_BV, student_logits_BV)
