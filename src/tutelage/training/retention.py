"""Right answers of a run's first evaluation, kept to see how probable they stay; see `evaluation.retained_mass`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tutelage.evaluation import EvaluationSet, Marked, retained_mass
from tutelage.training.run import Run
from tutelage.training.student_reading import student_logprobs
from tutelage.types import Rollout

__all__ = ["Retention"]


@dataclass(frozen=True)
class Retention:
    """The kept answers to one problem set; they are in the run's folder.

    Fields:
      run: whose student reads them.
      problems: the set.
      most: how many answers are kept; of each problem one first.
    """

    run: Run
    problems: EvaluationSet
    most: int

    def keep(self, marked: Marked) -> None:
        """Write down right answers, with their log-probabilities under the student now."""
        right = [made for made, is_right in zip(marked.rollouts, marked.correct, strict=True) if is_right and len(made)]
        kept = sorted(right, key=lambda made: (made.sample_index, made.prompt_index))[: self.most]
        logprobs = self._logprobs([(made.prompt_index, made.response_tokens) for made in kept])
        rows = [
            {
                "problem": made.prompt_index,
                "sample_index": made.sample_index,
                "response_tokens": made.response_tokens,
                "logprob": logprob,
            }
            for made, logprob in zip(kept, logprobs, strict=True)
        ]
        self.run.folder.write_kept(self.problems.name, rows)

    def mass(self) -> float | None:
        """How much of the kept answers' probability is still there; None = none was right, or none was kept."""
        rows = self.run.runtime.from_first(lambda: self.run.folder.read_kept(self.problems.name))
        if not rows:
            return None
        now = self._logprobs([(row["problem"], row["response_tokens"]) for row in rows])
        return retained_mass([row["logprob"] for row in rows], now)

    def _logprobs(self, answers: Sequence[tuple[int, list[int]]]) -> list[float]:
        """Log p of whole answers, by the number of their problem; each process reads a share."""
        unknown = [torch.full((len(tokens),), torch.nan) for _, tokens in answers]
        made = [
            Rollout.answer_to(self.problems.prompts[place], tokens, unknown_T)
            for (place, tokens), unknown_T in zip(answers, unknown, strict=True)
        ]
        return student_logprobs(self.run, made)
