"""Which of several answers to a problem are kept in this run?  Rules by name, and all that they read of the answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tutelage.config.verification import CompareAnswers
from tutelage.evaluation import Candidates, Selection
from tutelage.rewards import COMBINED, Rating
from tutelage.types import Rollout

__all__ = ["Selector"]


@dataclass(frozen=True)
class Selector:
    """Rules, and who says what they read.

    Fields:
      rules: by name.
      compare: which answers are equal; asked only if a rule reads that.
      rating: rates answers; None = nothing does.
      step: of the run, for weights of rewards that are schedules.
    """

    rules: Mapping[str, Selection]
    compare: CompareAnswers
    rating: Rating | None
    step: int

    def candidates(
        self, rollouts: Sequence[Rollout], size: int, numbers: Sequence[int], correct: Sequence[bool] | None
    ) -> list[Candidates]:
        """What is known of answers, `size` of them at a time; those answer one problem.

        Args:
          numbers: of each rollout's problem, as the rating knows it.
          correct: the verdicts, if there are any.
        """
        rewards = None
        if self.rating is not None:
            found = self.rating.judge(rollouts, numbers, correct)
            rewards = self.rating.entries(found, numbers, self.step)[COMBINED].tolist()
        compares = any("answers" in rule.needs for rule in self.rules.values())
        return [
            Candidates(
                [float(rollout.behaviour_logprobs.sum()) for rollout in rollouts[own]],
                [len(rollout) for rollout in rollouts[own]],
                None if correct is None else correct[own],
                None if rewards is None else rewards[own],
                self.compare(rollouts[own]) if compares else None,
            )
            for own in (slice(first, first + size) for first in range(0, len(rollouts), size))
        ]
