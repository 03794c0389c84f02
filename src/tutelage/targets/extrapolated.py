"""G-OPD and ExOPD: beyond the teacher, in the direction from a reference to the teacher."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tutelage.distributions import log_linear
from tutelage.schedules import Schedule, plain_number
from tutelage.targets.base import TargetRule, check_range, check_reference
from tutelage.types import Fact

__all__ = ["Extrapolated"]


@dataclass(frozen=True)
class Extrapolated(TargetRule):
    """Q ∝ q^s r^(1 - s) for a reference r: the optimum of s E[log q / r] - KL(p || r).     (arXiv 2602.12125)

    The reference is the student's initial weights where both models share their base, or the base that the teacher was
    trained from ("reward correction"). The paper's estimator uses the sampled token's log-ratio; at a fixed prefix the
    reverse KL to Q has the same gradient, while over whole answers Q's normaliser would be one more reward.

    On the whole vocabulary, and on a renormalised support, this is exact. With a tail it is the extrapolation of the
    coarser distributions in which all tokens of the tail are one.

    Fields:
      reward_scale: s >= 0 (lambda of the paper). 0 is the reference, 1 the teacher whatever the reference, between them
        a geometric blend; ExOPD uses 1.25, and 1.5 was unstable.
    """

    reward_scale: float | Schedule = 1.25
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.reference})
    is_normalised: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_range(self.reward_scale, "target.reward_scale", 0, math.inf, "Use 1 for the teacher, 1.25 as ExOPD.")

    def __call__(
        self, student_logprobs: Tensor, teacher_logprobs: Tensor, reference_logprobs: Tensor | None = None
    ) -> Tensor:
        scale = plain_number(self.reward_scale, "target.reward_scale")
        return log_linear((teacher_logprobs, check_reference(reference_logprobs, self)), (scale, 1 - scale))
