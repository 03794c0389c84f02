"""What a target is: given the models' log-probabilities on the same events, the log-probabilities to imitate."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Self

from torch import Tensor

from tutelage.errors import ConfigurationError
from tutelage.schedules import Schedule, as_schedule, at_step
from tutelage.types import Fact

__all__ = ["TargetRule", "check_range", "check_reference"]


@dataclass(frozen=True)
class TargetRule(ABC):
    """A distribution to imitate, made from the models' distributions.

    The events in the last axis are the whole vocabulary, or a support and its tail; a target treats the tail like any
    other event. Each member documents what that means.

    Class fields that a member may override:
      needs: the third model whose log-probabilities are used: `Fact.reference` (a model that is given) or
        `Fact.moving_reference` (the student as it was, so the reference must be one that is refreshed); empty = none.
      is_normalised: the result sums to 1 over whatever events it gets, so these must be all events: a partial sum
        over a support (`rest = "truncated"`) is refused.
      is_teacher: it is the teacher's own distribution.
      acts_per_token: applied to the log-probabilities of single tokens, whose events do not sum to 1, it gives the
        target's own for these tokens, up to a constant of the prefix. A loss on sampled tokens needs that.
    """

    needs: ClassVar[frozenset[Fact]] = frozenset()
    is_normalised: ClassVar[bool] = False
    is_teacher: ClassVar[bool] = False
    acts_per_token: ClassVar[bool] = False

    @property
    def is_constant(self) -> bool:
        """No gradient flows into the target: it is a fixed point of the update."""
        return True

    def at(self, step: int) -> Self:
        """The target with its schedules resolved to the numbers of `step`."""
        return at_step(self, step)

    @abstractmethod
    def __call__(
        self, student_logprobs: Tensor, teacher_logprobs: Tensor, reference_logprobs: Tensor | None = None
    ) -> Tensor:
        """Target log-probabilities, of the arguments' shape [..., events].

        Args:
          student_logprobs, teacher_logprobs: log p and log q, normalised; -inf allowed.
          reference_logprobs: those of the model that `needs` names, or None.
        """


def check_range(value: float | Schedule, key: str, lowest: float, largest: float, advice: str) -> None:
    """Refuse a field that is, or becomes at some step, smaller or larger than it may be."""
    smallest, greatest = as_schedule(value, key).bounds()
    if smallest < lowest or greatest > largest:
        verb, wrong = "reaches" if isinstance(value, Schedule) else "is", smallest if smallest < lowest else greatest
        expected = f"{lowest:g} or more" if largest == math.inf else f"{lowest:g} to {largest:g}"
        raise ConfigurationError(f"{key} {verb} {wrong:g}; expected {expected}. {advice}")


def check_reference(reference_logprobs: Tensor | None, target: TargetRule) -> Tensor:
    """The third model's log-probabilities, refused if they are missing."""
    if reference_logprobs is None:
        raise ConfigurationError(
            f"{target!r} got no reference; it compares with a third model. Give the engine a reference, or use another "
            "target."
        )
    return reference_logprobs
