"""What an advantage is: from a whole batch to one number per sampled token."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Self

from torch import Tensor

from tutelage.schedules import at_step
from tutelage.types import Batch, Fact

__all__ = ["Advantage"]


@dataclass(frozen=True)
class Advantage(ABC):
    """How much better a sampled token is than what else might have been drawn.

    It sees the whole batch as it was recorded, before the first micro-batch, since returns and baselines look across
    tokens and answers. No gradient flows through it.
    """

    @property
    def needs(self) -> frozenset[Fact]:
        """What must be known of a batch."""
        return frozenset()

    @property
    def rewards(self) -> frozenset[str]:
        """The names of the rewards that it reads; "reward" is all of the run's together, "correct" the verdict."""
        return frozenset()

    def consists_of(self, reward: str) -> bool:
        """Whether nothing is added up in it but what depends on this reward."""
        return reward in self.rewards

    @property
    def min_samples_per_prompt(self) -> int:
        """How many answers to a prompt it needs."""
        return 1

    def at(self, step: int) -> Self:
        """The advantage with its schedules resolved to the numbers of `step`."""
        return at_step(self, step)

    @abstractmethod
    def __call__(self, batch: Batch, target_logprobs_N: Tensor) -> Tensor:
        """Advantages of the batch's N tokens.

        Args:
          batch: the whole one.
          target_logprobs_N: log target of each sampled token at the rollout; NaN unless it needs `Fact.teacher_token`.
        Returns:
          [N], detached, on the CPU.
        """
