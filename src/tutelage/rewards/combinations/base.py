"""What a combination is: from several rewards of each answer to one. Whatever it learns on the way is its state."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from tutelage.advantages.groups import group_deviations, group_means
from tutelage.errors import ConfigurationError
from tutelage.schedules import at_step

__all__ = ["EPSILON", "Combination", "Ratings", "State", "normalised_in_groups"]

State = Mapping[str, Any]
"""Numbers, texts, lists and tables of such, all of which JSON keeps exactly."""

EPSILON = 1e-4
"""Added to a deviation within a group, as TRL does."""


@dataclass(frozen=True)
class Ratings:
    """Several rewards of the B answers of a global batch, K of them.

    Fields:
      rewards: label -> [B] in float64.
      weights: label -> the reward's weight at the step.
      groups_B: the same number for answers to the same prompt.
      gram_KK: inner products of the gradients of each reward alone, see `combinations.gradients`; None = they were not
        measured.
    """

    rewards: Mapping[str, Tensor]
    weights: Mapping[str, float]
    groups_B: Tensor
    gram_KK: Tensor | None = None

    @property
    def labels(self) -> list[str]:
        """Of the rewards, in the order of the run file."""
        return list(self.rewards)

    @property
    def means(self) -> dict[str, float]:
        """Mean of each reward over the batch; without its weight."""
        return {label: float(values_B.mean()) for label, values_B in self.rewards.items()}

    def signed(self, values: Mapping[str, float]) -> dict[str, float]:
        """Numbers by label, each negated where the reward is a cost: where its weight is below 0."""
        return {label: math.copysign(1.0, self.weights[label]) * value for label, value in values.items()}

    def weighted(self, *, normalised: bool = False) -> dict[str, Tensor]:
        """Each reward times its weight, [B]; `normalised`: after it was normalised within its groups."""
        return {
            label: self.weights[label] * (normalised_in_groups(values_B, self.groups_B) if normalised else values_B)
            for label, values_B in self.rewards.items()
        }

    def members(self, *, normalised: bool = False) -> Tensor:
        """The same as one tensor, [K, B], for those who do not ask which is which."""
        return torch.stack(list(self.weighted(normalised=normalised).values()))


@dataclass(frozen=True)
class Combination(ABC):
    """How several rewards become one. A frozen part with pure methods; a run keeps the state between its steps.

    All processes of a run compute the same state, since ratings are of the global batch.
    """

    def at(self, step: int) -> Self:
        """The combination with its schedules resolved to the numbers of `step`."""
        return at_step(self, step)

    def check(self, labels: Sequence[str]) -> None:
        """Refuse rewards that it cannot combine, before any compute is spent.

        Raises:
          ConfigurationError: with the reason.
        """
        if not labels:
            raise ConfigurationError("there is no reward to combine; expected one at least. Add a [[reward]].")

    @property
    def compares_answers(self) -> bool:
        """Whether it normalises rewards among the answers to a prompt, of which one alone would be worth 0."""
        return False

    def measures_gradients(self, step: int) -> bool:
        """Whether it reads `Ratings.gram_KK` at a step; one that ever does so does it at step 0."""
        return False

    def initial_state(self, labels: Sequence[str]) -> State:
        """The state before the first step."""
        return {}

    @abstractmethod
    def combine(self, ratings: Ratings, state: State) -> Tensor:
        """One reward for every answer: [B]."""

    def next_state(self, ratings: Ratings, state: State) -> State:
        """The state after a step whose batch was rated so."""
        return state

    def unmet(self, ratings: Ratings, state: State) -> dict[str, str]:
        """What it cannot reach, by label, each in a sentence for the user."""
        return {}

    def metrics(self, ratings: Ratings, state: State) -> dict[str, float]:
        """Numbers of the step that `state` was used in, by the names of docs/usage/metrics.md."""
        return {}


def normalised_in_groups(rewards_B: Tensor, groups_B: Tensor) -> Tensor:
    """(r - mean of its group) / (deviation of its group + 1e-4), with the sample deviation; 0 in groups of one."""
    return (rewards_B - group_means(rewards_B, groups_B)) / (group_deviations(rewards_B, groups_B) + EPSILON)
