"""Off-policy distillation from a file: the answers exist, and no token is sampled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tutelage.errors import ConfigurationError
from tutelage.policies.base import Behaviour, Policy

__all__ = ["Offline"]


@dataclass(frozen=True)
class Offline(Policy):
    """The answers were written, and scored by the teacher, before the run; the engine returns them.

    Their probability under the policy that wrote them is unknown. So there is no mu to draw from, and no ratio p / mu.
    """

    is_offline: ClassVar[bool] = True

    @property
    def needs_teacher(self) -> bool:
        return False

    def __call__(self, student_logits_BV: Tensor, teacher_logits_BV: Tensor | None = None) -> Behaviour:
        raise ConfigurationError(
            "the policy 'offline' takes answers from data.scores and picks no token, so nothing can be sampled from "
            "it. Train with it, or choose a policy that samples, such as 'student'."
        )
