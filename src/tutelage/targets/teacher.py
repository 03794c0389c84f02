"""Imitate the teacher as it is: plain distillation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tutelage.targets.base import TargetRule

__all__ = ["Teacher"]


@dataclass(frozen=True)
class Teacher(TargetRule):
    """The teacher's own distribution q."""

    is_teacher: ClassVar[bool] = True
    acts_per_token: ClassVar[bool] = True

    def __call__(
        self, student_logprobs: Tensor, teacher_logprobs: Tensor, reference_logprobs: Tensor | None = None
    ) -> Tensor:
        return teacher_logprobs
