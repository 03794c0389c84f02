"""A target near the student: the mixture of both models' distributions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tutelage.distributions import arithmetic_blend
from tutelage.schedules import Schedule, plain_number
from tutelage.targets.base import TargetRule, check_range

__all__ = ["Proximal"]


@dataclass(frozen=True)
class Proximal(TargetRule):
    """log((1 - w) p + w q): never less than 1 - w of the student, so no log-ratio exceeds -log(1 - w).

    This is TOP-D's target (alpha = w = 0.1 or 0.2, arXiv 2607.04751) and NeMo-RL's proximal teacher. On a sampled token
    log target - log p is log(w q / p + 1 - w): between log(1 - w) and max(0, log q / p), at least w log q / p, and 0 or
    less on average under p. A teacher that fits nowhere gives that floor everywhere, and nothing stands out any more.

    The student in it is detached: the present one in a distribution loss, that of the rollout on a sampled token. A
    mixture can be taken event by event, so this is exact on the vocabulary, with a tail and truncated; on a
    renormalised support it is the mixture of the renormalised.

    Fields:
      weight: w in [0, 1]. At 1 the teacher; at 0 the student itself, from which nothing is learned.
    """

    weight: float | Schedule
    acts_per_token: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_range(self.weight, "target.weight", 0, 1, "Use 1 for the teacher itself.")

    def __call__(
        self, student_logprobs: Tensor, teacher_logprobs: Tensor, reference_logprobs: Tensor | None = None
    ) -> Tensor:
        return arithmetic_blend(student_logprobs, teacher_logprobs, plain_number(self.weight, "target.weight"))
