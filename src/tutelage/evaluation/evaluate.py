"""Sample answers to a problem set and judge them.

Evaluation draws from random streams of its own, so evaluating more often does not change training, and evaluating a
checkpoint later gives the samples that evaluating it during the run gave.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import ConfigurationError
from tutelage.evaluation.readings import readings_of
from tutelage.evaluation.results import Drawing, EvaluationResult, EvaluationSample, summarise
from tutelage.policies import Policy
from tutelage.rollout import Engine, MapShards, Request, answers_to_share, derive_seed, single_process
from tutelage.tasks import Problem
from tutelage.types import Prompt, Rollout

__all__ = ["GREEDY_SUFFIX", "EvaluationSet", "Marked", "evaluate", "mark"]

# A set that is also answered greedily has these answers' results under its name and this.
GREEDY_SUFFIX = "-greedy"


@dataclass(frozen=True)
class EvaluationSet:
    """Problems to be judged on, as rendered for the student.

    Fields:
      name: in tables and file names.
      prompts: one per problem.
      ids, answers: of the problems, in the same order.
      questions: the problems themselves, which rewards read; empty where nothing is rewarded.
    """

    name: str
    prompts: Sequence[Prompt]
    ids: Sequence[str]
    answers: Sequence[str]
    questions: Sequence[Problem] = ()


@dataclass(frozen=True)
class Marked:
    """Answers to an evaluation set, right or wrong; ordered by problem and then by sample.

    Fields:
      problems, drawing: what was answered, and how.
      rollouts, correct: the answers, and the verdicts on them.
      seconds: wall-clock time of sampling and marking.
    """

    problems: EvaluationSet
    drawing: Drawing
    rollouts: Sequence[Rollout]
    correct: Sequence[bool]
    seconds: float

    @property
    def answers(self) -> list[str]:
        """The right answer to what each rollout answers."""
        return [self.problems.answers[rollout.prompt_index] for rollout in self.rollouts]

    @property
    def correct_PG(self) -> NDArray[np.bool_]:
        """The verdicts by problem."""
        return np.array(self.correct, dtype=bool).reshape(len(self.problems.prompts), self.drawing.num_samples)

    def result(self) -> EvaluationResult:
        """The numbers."""
        shape = self.correct_PG.shape
        result = summarise(
            self.correct_PG,
            np.array([len(rollout) for rollout in self.rollouts]).reshape(shape),
            np.array([rollout.finished for rollout in self.rollouts]).reshape(shape),
            self.drawing,
            name=self.problems.name,
            seconds=self.seconds,
        )
        readings: dict[str, Any] = readings_of(self.rollouts)
        return replace(result, **readings)

    def samples(self, decode: Callable[[Sequence[int]], str]) -> list[EvaluationSample]:
        """One record per sample."""
        return [
            EvaluationSample(
                problem_id=self.problems.ids[rollout.prompt_index],
                sample_index=rollout.sample_index,
                response=decode(rollout.response_tokens),
                answer=answer,
                correct=bool(is_correct),
                finished=rollout.finished,
                num_tokens=len(rollout),
            )
            for rollout, answer, is_correct in zip(self.rollouts, self.answers, self.correct, strict=True)
        ]


def evaluate(
    engine: Engine,
    problems: EvaluationSet,
    policy: Policy,
    drawing: Drawing,
    *,
    verify: Callable[[Sequence[Rollout], Sequence[str]], Sequence[bool]],
    decode: Callable[[Sequence[int]], str],
    map_shards: MapShards[Any] = single_process,
) -> tuple[EvaluationResult, list[EvaluationSample]]:
    """Judge a policy's answers: pass@1, unbiased pass@k, a 95% interval over problems, truncation and length.

    Args:
      engine: its student is judged.
      policy: how answers are drawn; the student at the temperature of `drawing`.
      verify: (rollouts, their answers) -> right or wrong.
      decode: token ids to text, for the samples.
      map_shards: shares the problems among processes.
    Returns:
      the result, and one record per sample.
    """
    marked = mark(engine, problems, policy, drawing, verify=verify, map_shards=map_shards)
    return marked.result(), marked.samples(decode)


def mark(
    engine: Engine,
    problems: EvaluationSet,
    policy: Policy,
    drawing: Drawing,
    *,
    verify: Callable[[Sequence[Rollout], Sequence[str]], Sequence[bool]],
    map_shards: MapShards[Any] = single_process,
    read: Callable[[Sequence[Rollout]], list[Rollout]] | None = None,
) -> Marked:
    """Draw a policy's answers and judge each one.

    Args:
      read: fills in what a teacher says of the answers; None = nobody reads them.
      (the others as in `evaluate`)
    """
    if not problems.prompts:
        raise ConfigurationError(f"evaluation set {problems.name!r} has no problem left to evaluate on.")
    started = time.perf_counter()
    seed, num_samples = derive_seed(drawing.seed, f"evaluation/{problems.name}"), drawing.num_samples
    request = Request(problems.prompts, drawing.max_new_tokens, num_samples, seed, records_statistics=read is not None)

    def judged(share: slice) -> list[tuple[Rollout, bool]]:
        rollouts = answers_to_share(engine, policy, request, share)
        rollouts = rollouts if read is None or not rollouts else read(rollouts)
        verdicts = verify(rollouts, [problems.answers[rollout.prompt_index] for rollout in rollouts])
        return list(zip(rollouts, verdicts, strict=True))

    drawn = map_shards(len(problems.prompts), judged)
    rollouts, correct = [rollout for rollout, _ in drawn], [is_correct for _, is_correct in drawn]
    return Marked(problems, drawing, rollouts, correct, time.perf_counter() - started)
