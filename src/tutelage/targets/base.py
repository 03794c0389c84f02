"""What a target is: given both models' log-probabilities on the same events, the log-probabilities to imitate."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Self

from torch import Tensor

from tutelage.schedules import at_step

__all__ = ["TargetRule"]


@dataclass(frozen=True)
class TargetRule(ABC):
    """A distribution to imitate, made from the two that there are.

    The events in the last axis are the whole vocabulary, or a support and its tail; a target must not care which.

    What a member may say of itself:
      acts_per_token: applied to the log-probabilities of single tokens, whose events do not sum to 1, it gives the
        target's own for these tokens, up to a constant of the prefix. A loss on sampled tokens needs that.
    """

    acts_per_token: ClassVar[bool] = False

    def at(self, step: int) -> Self:
        """The target with its schedules resolved to the numbers of `step`."""
        return at_step(self, step)

    @abstractmethod
    def __call__(self, student_logprobs: Tensor, teacher_logprobs: Tensor) -> Tensor:
        """Target log-probabilities, same shape as both arguments: [..., events]."""
