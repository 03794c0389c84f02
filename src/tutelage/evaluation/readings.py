"""How does a student write, whether right or wrong?  Repetition and a teacher's reading of its own answers to held-out
problems, and the probability of texts that are given."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from tutelage.diagnostics import rollout_metrics
from tutelage.diagnostics.repetition import repeated_share
from tutelage.types import Batch, Rollout
from tutelage.weighting.base import finite_kl, recorded_kl

__all__ = ["TextResult", "TextSet", "readings_of"]

# Of `diagnostics.rollout_metrics`.
MEANS = ("student_entropy", "teacher_logprob", "support_overlap")


@dataclass(frozen=True)
class TextSet:
    """Texts whose probability under the student is looked at while it trains.

    Fields:
      name: in tables and files.
      are_answers: they are answers to prompts, such as a teacher's; otherwise ordinary text.
      rollouts: each text as the response to its prompt; of ordinary text, the prompt is its first token.
    """

    name: str
    are_answers: bool
    rollouts: Sequence[Rollout]

    def result(self, logprobs: Sequence[float]) -> TextResult:
        """The numbers, from log p of each whole text."""
        num_tokens = sum(map(len, self.rollouts))
        return TextResult(self.name, self.are_answers, len(self.rollouts), num_tokens, sum(logprobs) / num_tokens)


@dataclass(frozen=True)
class TextResult:
    """How probable a set of texts is to a student.

    Fields:
      name, are_answers: of the set.
      num_texts, num_tokens: how many; tokens of prompts not counted.
      logprob: nats per token, mean over all tokens of all texts.
    """

    name: str
    are_answers: bool
    num_texts: int
    num_tokens: int
    logprob: float

    def to_dict(self) -> dict[str, Any]:
        """The fields."""
        return asdict(self)


def readings_of(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Numbers of a student's answers, as far as is known what they need.

    repeated_4grams   mean over answers of at least 4 tokens of 1 - distinct 4-grams / 4-grams
    student_entropy   mean over tokens of H(p), whole vocabulary
    teacher_logprob   mean over tokens of log q
    reverse_kl        mean over tokens of KL(p || q), whole vocabulary; from a teacher whose head is not here, on the
                      student's top K and one event for the rest: at most the full KL, and a third of it for a student
                      of high entropy; where the teacher rules out a token it counts as the largest finite one
    support_overlap   mean over tokens of the share of the student's top K that is in the teacher's

    p is the student at temperature 1, q the teacher, both on the prefixes that the student wrote. A number that is not
    finite is left out.
    """
    answers = [rollout for rollout in rollouts if len(rollout)]
    found: dict[str, float] = {}
    shares = [share for each in answers if (share := repeated_share(each.response_tokens)) is not None]
    if shares:
        found["repeated_4grams"] = fmean(shares)
    if answers and answers[0].student.entropy_T is not None:
        means = rollout_metrics(answers)
        found |= {name: means[name] for name in MEANS if name in means}
    on_support = ("student.support_logprobs_TK", "teacher.support_logprobs_TK", "teacher.tail_logprobs_T")
    if answers and all(each.tokenwise("teacher.reverse_kl_T") is not None for each in answers):
        found["reverse_kl"] = float(finite_kl(Batch(answers).joined("teacher.reverse_kl_T")).mean())
    elif answers and all(each.tokenwise(path) is not None for each in answers for path in on_support):
        found["reverse_kl"] = float(recorded_kl(Batch(answers), reverse=True).mean())
    return {name: value for name, value in found.items() if math.isfinite(value)}
