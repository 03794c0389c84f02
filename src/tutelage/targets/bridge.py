"""Veto: the teacher times a power of the student, in which a doubtful student damps the teacher's extremes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tutelage.distributions import log_linear
from tutelage.schedules import Schedule, plain_number
from tutelage.targets.base import TargetRule, check_range

__all__ = ["Bridge"]


@dataclass(frozen=True)
class Bridge(TargetRule):
    """Q ∝ q p^beta: the teacher, weighed with a power of the student.     (Veto, arXiv 2601.07155)

    Not a mixture: the teacher's exponent stays 1, so Q is sharper than q where the two agree. Whether the paper lets a
    gradient through Q is not known; detached, its reverse KL has the stated cost (1 - beta) log p - log q, and a fixed
    point q^(1 / (1 - beta)) for beta < 1. The schedule is the closed form beta_0 (1 - k / N), `Linear(beta_0, 0, N)`;
    the pseudo-code's repeated product would fall faster.

    On the whole vocabulary, and on a renormalised support, this is exact. With a tail it is the bridge of the coarser
    distributions in which all tokens of the tail are one: q p^beta there is more than the sum over its tokens.

    Fields:
      beta: >= 0; at 0 the teacher itself. Veto starts at 0.8 (reasoning), 1 (code) or 0.3 (summaries).
      detach: no gradient through Q. False adds beta E_Q[∇ log p] to the gradient of the reverse KL.
    """

    beta: float | Schedule
    detach: bool = True
    is_normalised: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_range(self.beta, "target.beta", 0, math.inf, "Use 0 for the teacher itself, 0.8 as in the paper.")

    @property
    def is_constant(self) -> bool:
        return self.detach

    def __call__(
        self, student_logprobs: Tensor, teacher_logprobs: Tensor, reference_logprobs: Tensor | None = None
    ) -> Tensor:
        return log_linear((teacher_logprobs, student_logprobs), (1, plain_number(self.beta, "target.beta")))
