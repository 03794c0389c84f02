"""The rewards of a run, opened: answers in, numbers out. It owns the combination's state, which moves once per step."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tutelage.errors import CheckpointError, ConfigurationError, RewardError
from tutelage.rewards.base import Answers, Judge, Reward, RewardWarning, Setting
from tutelage.rewards.combinations import Combination, Ratings, State, WeightedSum
from tutelage.tasks import Problem
from tutelage.types import Batch, Rollout

__all__ = ["COMBINED", "VERDICT", "Rating", "check_rewards"]

COMBINED, VERDICT = "reward", "correct"
"""The entries of `Batch.rewards` that are no reward's own: the combined one, and the verifier's verdict."""


class Rating:
    """How the answers of a run are rated.

    Args:
      rewards: with labels of their own.
      combination: makes one number of them.
      setting: what the run tells them.
      problems: of the run's prompts.
      response_of: a rollout's text.
    Raises:
      ConfigurationError: see `check_rewards`.
    """

    def __init__(
        self,
        rewards: Sequence[Reward],
        combination: Combination | None = None,
        setting: Setting | None = None,
        *,
        problems: Sequence[Problem],
        response_of: Callable[[Rollout], str],
    ) -> None:
        self.rewards, self.combination = list(rewards), combination or WeightedSum()
        check_rewards(self.rewards, self.combination)
        self.problems, self.response_of = problems, response_of
        self.judges: dict[str, Judge] = {each.label: each.opened(setting or Setting()) for each in self.rewards}
        self.state: State = self.combination.initial_state(list(self.judges))
        self._reported: set[str] = set()

    def judge(
        self, rollouts: Sequence[Rollout], numbers: Sequence[int], correct: Sequence[bool] | None
    ) -> list[dict[str, float]]:
        """What each reward says of each rollout, by label.

        Args:
          numbers: of each rollout's problem.
          correct: the verifier's verdicts, if there are any.
        Raises:
          RewardError: a judge failed, or did not return one finite number for each.
        """
        if not rollouts:
            return []
        texts = [self.response_of(rollout) for rollout in rollouts]
        answers = Answers(rollouts, [self.problems[number] for number in numbers], texts, correct)
        columns = {label: _checked(label, judge, answers) for label, judge in self.judges.items()}
        return [{label: column[place] for label, column in columns.items()} for place in range(len(rollouts))]

    def entries(self, found: Sequence[Mapping[str, float]], groups: Sequence[int], step: int) -> dict[str, Tensor]:
        """The entries of `Batch.rewards`: each reward under its label, and "reward", all combined; [B] each.

        Args:
          found: what `judge` said of all rollouts of the global batch.
          groups: numbers of their prompts.
          step: of the run; weights depend on it.
        Raises:
          RewardError: the combined reward is not finite.
        """
        rewards = {label: torch.tensor([each[label] for each in found], dtype=torch.float64) for label in self.judges}
        return {**rewards, COMBINED: self._combined(self._ratings(rewards, torch.tensor(groups), step), step)}

    def alone(self, batch: Batch, step: int) -> list[Tensor]:
        """What `Batch.rewards["reward"]` would be for each reward alone, costs negated and weights aside: [B] each."""
        ratings = self._ratings_of(batch, step)
        signs = ratings.signed(dict.fromkeys(ratings.labels, 1.0))
        return [signs[label] * values_B for label, values_B in ratings.rewards.items()]

    def recombined(self, batch: Batch, gram_KK: Tensor, step: int) -> Batch:
        """A rated batch, rated anew with the inner products of the gradients of its rewards.

        Args:
          gram_KK: in the order of `alone`.
        Raises:
          RewardError: the combined reward is not finite.
        """
        measured = replace(batch, reward_gram_KK=gram_KK)
        combined_B = self._combined(self._ratings_of(measured, step), step)
        return replace(measured, rewards={**batch.rewards, COMBINED: combined_B})

    def metrics(self, batch: Batch, step: int) -> dict[str, float]:
        """Means and deviations of a rated batch, and what its combination reports."""
        ratings, combined_B = self._ratings_of(batch, step), batch.rewards[COMBINED]
        deviations = {label: float(values_B.std(correction=0)) for label, values_B in ratings.rewards.items()}
        return {
            "reward_std": float(combined_B.std(correction=0)),
            **{f"reward/{label}": mean for label, mean in ratings.means.items()},
            **{f"reward_std/{label}": deviation for label, deviation in deviations.items()},
            **self.combination.at(step).metrics(ratings, self.state),
        }

    def advance(self, batch: Batch, step: int) -> None:
        """Move the state on, after the update on a batch that `entries` rated at this step.

        What the combination cannot reach is a warning, once for each reward.
        """
        combination, ratings = self.combination.at(step), self._ratings_of(batch, step)
        for label, text in combination.unmet(ratings, self.state).items():
            if label not in self._reported:
                warnings.warn(text, RewardWarning, stacklevel=2)
                self._reported.add(label)
        self.state = combination.next_state(ratings, self.state)

    def restore(self, state: State) -> None:
        """Take a state that a checkpoint kept.

        Raises:
          CheckpointError: it is not one of this combination.
        """
        if not _is_alike(self.combination.initial_state(list(self.judges)), state):
            raise CheckpointError(f"a state that {type(self.combination).__name__} does not have: {json.dumps(state)}")
        self.state = state

    def _ratings_of(self, batch: Batch, step: int) -> Ratings:
        rewards = {label: batch.rewards[label].double() for label in self.judges}
        return replace(self._ratings(rewards, batch.prompts_B, step), gram_KK=batch.reward_gram_KK)

    def _combined(self, ratings: Ratings, step: int) -> Tensor:
        combined_B = self.combination.at(step).combine(ratings, self.state)
        if not bool(combined_B.isfinite().all()):
            raise RewardError(
                f"the combination {self.combination} of finite rewards is not finite; expected numbers that can be "
                "added up. Scale the rewards with their weights."
            )
        return combined_B

    def _ratings(self, rewards: Mapping[str, Tensor], groups_B: Tensor, step: int) -> Ratings:
        weights = {each.label: float(each.at(step).weight) for each in self.rewards}  # type: ignore[arg-type]
        return Ratings(rewards, weights, groups_B)


def check_rewards(rewards: Sequence[Reward], combination: Combination) -> None:
    """Refuse rewards that cannot be told apart, and those that the combination cannot combine.

    Raises:
      ConfigurationError: with the reason.
    """
    labels = [each.label for each in rewards]
    for reward in rewards:
        label = reward.label
        if labels.count(label) > 1 or not label:
            raise ConfigurationError(
                f"{labels.count(label)} rewards have the label {label!r}; metrics tell them apart by it. Set "
                "reward.label of each to a name of its own."
            )
        if label == COMBINED or (label == VERDICT and not reward.reads_verdict):
            raise ConfigurationError(
                f"reward.label is {label!r}, which is the name of "
                f"{'all rewards combined' if label == COMBINED else 'the verdict of the verifier'}. Choose another."
            )
    combination.check(labels)


def _checked(label: str, judge: Judge, answers: Answers) -> list[float]:
    """What a judge says of answers, if it is one finite number for each."""
    values_B = judge(answers)
    if not isinstance(values_B, Tensor) or values_B.shape != (len(answers),):
        found = list(values_B.shape) if isinstance(values_B, Tensor) else type(values_B).__name__
        raise RewardError(
            f"the reward {label!r} returned {found} for {len(answers)} answers; expected a tensor with one number for "
            "each. Correct the reward."
        )
    values = values_B.tolist()
    for place, value in enumerate(values):
        if not math.isfinite(value):
            raise RewardError(
                f"the reward {label!r} is {value} for an answer to problem {answers.problems[place].id}; expected a "
                f"finite number for any text. The answer begins {answers.responses[place][:80]!r}."
            )
    return [float(value) for value in values]


def _is_alike(ours: Any, theirs: Any) -> bool:
    """Whether a state read from a file has the tables, lists and numbers of ours; what is empty there may be filled."""
    if isinstance(ours, Mapping) and ours:
        is_table = isinstance(theirs, Mapping) and theirs.keys() == ours.keys()
        return is_table and all(_is_alike(ours[name], theirs[name]) for name in ours)
    kind = type(ours)
    return _is_plain(theirs) and (ours is None or kind is type(theirs) or (kind is float and type(theirs) is int))


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | Mapping):
        return all(map(_is_plain, value.values() if isinstance(value, Mapping) else value))
    return value is None or (type(value) in (int, float) and math.isfinite(value))
