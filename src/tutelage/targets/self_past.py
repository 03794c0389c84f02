"""PS-KD: the teacher's distribution mixed with that of the student some steps ago."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tutelage.distributions import arithmetic_blend
from tutelage.schedules import Schedule, plain_number
from tutelage.targets.base import TargetRule, check_range, check_reference
from tutelage.types import Fact

__all__ = ["SelfPast"]


@dataclass(frozen=True)
class SelfPast(TargetRule):
    """(1 - a) q + a p_past, with the student of an earlier step as p_past.     (PS-KD, arXiv 2006.12000)

    The paper mixes labels with the model's predictions of the epoch before. Here the teacher takes the labels' place,
    and p_past is the student at the last multiple of `reference.refresh_every` steps, reading the present rollouts: an
    epoch's number of steps makes it the paper's. Before the first refresh the paper has labels only; here p_past is the
    untrained student, which a schedule that starts at 0 leaves out.

    A mixture can be taken event by event, so this is exact on the vocabulary, with a tail and truncated; on a
    renormalised support it is the mixture of the renormalised.

    Fields:
      past_weight: a in [0, 1]; 0 is the teacher. The paper lets it rise linearly to 0.8: of T steps, step t has
        0.8 (t + 1) / T, `Linear(0.8 / T, 0.8, T - 1)`.
    """

    past_weight: float | Schedule
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.moving_reference})

    def __post_init__(self) -> None:
        check_range(self.past_weight, "target.past_weight", 0, 1, "Use 0 for the teacher itself.")

    def __call__(
        self, student_logprobs: Tensor, teacher_logprobs: Tensor, reference_logprobs: Tensor | None = None
    ) -> Tensor:
        past_logprobs = check_reference(reference_logprobs, self)
        return arithmetic_blend(teacher_logprobs, past_logprobs, plain_number(self.past_weight, "target.past_weight"))
