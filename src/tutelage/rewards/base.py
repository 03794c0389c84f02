"""What a reward is: from answers as text to one number for each.

A reward is a frozen description, its hyperparameters. `opened` makes the judge of a run from it, once, since some
judges have weights or a process of their own.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from torch import Tensor

from tutelage.errors import ConfigurationError
from tutelage.schedules import Schedule, at_step
from tutelage.tasks import Problem, TemplateClock
from tutelage.types import Rollout

__all__ = ["Answers", "Judge", "JudgeMemory", "Reward", "RewardWarning", "Setting"]

LABEL = re.compile(r"[A-Za-z0-9_-]{1,60}")


class RewardWarning(UserWarning):
    """A reward has given up on an answer, which counts as 0, or a constraint on rewards is out of reach."""


@dataclass(frozen=True)
class Answers:
    """B answers to be judged: those of one process, in the order of its rollouts.

    Fields:
      rollouts: their tokens, and whether each one ended by itself.
      problems: what each one answers, with the right answer where it is known.
      responses: their texts, without special tokens.
      correct: the verifier's verdicts; None = there is none.
    """

    rollouts: Sequence[Rollout]
    problems: Sequence[Problem]
    responses: Sequence[str]
    correct: Sequence[bool] | None = None

    def __len__(self) -> int:
        return len(self.rollouts)


@dataclass(frozen=True)
class Setting:
    """What a run tells its rewards.

    Fields:
      device: where a reward model computes.
      max_new_tokens: length limit of an answer.
      clock: the date, for chat templates of reward models that ask for it.
    """

    device: str = "cpu"
    max_new_tokens: int = 512
    clock: TemplateClock = field(default_factory=TemplateClock)


@dataclass(frozen=True)
class JudgeMemory:
    """Bytes that a judge takes where the run computes.

    Fields:
      weights: throughout the run.
      reading: while it judges.
    """

    weights: int = 0
    reading: int = 0


Judge = Callable[[Answers], Tensor]
"""Answers -> [B], a finite number for each. Total on any text, and bounded in time; raises `RewardError` otherwise."""


@dataclass(frozen=True)
class Reward(ABC):
    """What an answer is worth, in one respect.

    Fields:
      weight: what a combination multiplies it with; below 0 the reward is a cost.
      label: its name in `Batch.rewards` and in the metrics; "" = the member's own name in the run file.
    """

    weight: float | Schedule = field(default=1.0, kw_only=True)
    label: str = field(default="", kw_only=True)

    def __post_init__(self) -> None:
        bounds = self.weight.bounds() if isinstance(self.weight, Schedule) else (self.weight, self.weight)
        if not all(map(math.isfinite, bounds)):
            raise ConfigurationError(f"reward.weight is {self.weight}; expected a finite number. Use 1 if in doubt.")
        if self.label and not LABEL.fullmatch(self.label):
            raise ConfigurationError(
                f"reward.label is {self.label!r}; expected letters, digits, '_' and '-' only, at most 60 of them: "
                "metrics are named after it."
            )

    @property
    def reads_verdict(self) -> bool:
        """Whether it reads what the verifier says."""
        return False

    @property
    def reads_answer(self) -> bool:
        """Whether it reads the right answer, where it is known."""
        return False

    def at(self, step: int) -> Self:
        """The reward with its schedules resolved to the numbers of `step`."""
        return at_step(self, step)

    def check(self, setting: Setting) -> dict[str, Any]:
        """Refuse what cannot work, before any model is loaded.

        Returns:
          digests of all that the judge reads from files, which are compared when a run is resumed; values are JSON's.
        Raises:
          ConfigurationError, ModelError: with the reason.
        """
        return {}

    def preview(self, setting: Setting, problem: Problem, response: str) -> str | None:
        """What a judge with a tokenizer of its own reads, special tokens included; None = it has none.

        No weights are loaded.
        """
        return None

    def memory(self, num_answers: int, longest: int) -> JudgeMemory:
        """What its judge takes; no weights are loaded.

        Args:
          num_answers: that a process judges at a step.
          longest: tokens of a prompt with its answer, at most; the student's, for which a judge's own are taken.
        """
        return JudgeMemory()

    @abstractmethod
    def opened(self, setting: Setting) -> Judge:
        """What judges the answers of a run. It does not depend on the weight, which may move."""
