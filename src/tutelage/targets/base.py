"""What a target is: given both models' log-probabilities on the same events, the log-probabilities to imitate."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Self

from torch import Tensor

from tutelage.schedules import at_step

__all__ = ["TargetRule"]


@dataclass(frozen=True)
class TargetRule(ABC):
    """A distribution to imitate, made from the two that there are.

    The events in the last axis are the whole vocabulary, or a support and its tail; a target must not care which.
    """

    def at(self, step: int) -> Self:
        """The target with its schedules resolved to the numbers of `step`."""
        return at_step(self, step)

    @abstractmethod
    def __call__(self, student_logprobs: Tensor, teacher_logprobs: Tensor) -> Tensor:
        """Target log-probabilities, same shape as both arguments: [..., events]."""
