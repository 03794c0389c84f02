"""Answers to two prompts, for a teacher to score, and answers that one has scored."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tests.support.rollouts import rollout_of
from tutelage.models import ModelSet
from tutelage.rollout import LocalScorer
from tutelage.types import Prompt, Rollout

PROMPT, OTHER = Prompt([1, 2, 3], teacher_tokens=[9, 1, 2, 3]), Prompt([4])


def answers() -> list[Rollout]:
    """Five to the first prompt and two to the second, as a teacher in float64 reads them."""
    made = []
    for prompt, count in ((PROMPT, 5), (OTHER, 2)):
        for number in range(count):
            tokens = [5 + number, 6, 7][: 1 + number % 3]
            unknown = torch.full((len(tokens),), torch.nan)
            reads = None if prompt.teacher_tokens is None else list(prompt.teacher_tokens)
            made.append(
                rollout_of(
                    prompt.student_tokens, tokens, unknown, unknown, finished=number == 1, teacher_prompt_tokens=reads
                )
            )
    return made


def scored(models: ModelSet, rollouts: Sequence[Rollout]) -> list[Rollout]:
    """As the teachers here read them."""
    return LocalScorer(models.teachers, models.vocabulary, 1000).score(rollouts)
