"""Models here read answers that exist: teachers, each those of its own prompts, and a reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from tutelage.errors import ConfigurationError
from tutelage.kernels import Rows
from tutelage.models import LanguageModel, ModelSet, Vocabulary, teacher_named
from tutelage.rollout.decoding.statistics import reference_statistics, teacher_statistics, teacher_top_statistics
from tutelage.rollout.reading import Reader, Statistics
from tutelage.rollout.scorers.base import by_teacher
from tutelage.types import Rollout

__all__ = ["LocalScorer", "ReferenceScorer", "TopScorer"]


@dataclass(frozen=True)
class LocalScorer:
    """Each rollout's teacher says how probable its tokens, and those of the student's support, are to it.

    Fields:
      teachers: by the name that a rollout calls its own, see `ModelSet`.
      vocabulary: the shared one.
      max_tokens: most tokens in one forward.
    """

    teachers: Mapping[str | None, LanguageModel]
    vocabulary: Vocabulary
    max_tokens: int

    def score(self, rollouts: Sequence[Rollout], *, keep_hidden: bool = False) -> list[Rollout]:
        """See `Scorer`; the rollouts must carry the student's support.

        Raises:
          ConfigurationError: there is no teacher, or none of a rollout's name.
          DataError: see `Reader.read`.
        """
        return _read_by_teachers(self, rollouts, teacher_statistics, keep_hidden=keep_hidden)


@dataclass(frozen=True)
class TopScorer:
    """Each rollout's teacher says which tokens it would have found most probable; no student is needed.

    Fields:
      top_k: K, tokens per place whose log-probabilities are kept.
      (the others as in `LocalScorer`)
    """

    teachers: Mapping[str | None, LanguageModel]
    vocabulary: Vocabulary
    max_tokens: int
    top_k: int

    def score(self, rollouts: Sequence[Rollout], *, keep_hidden: bool = False) -> list[Rollout]:
        """See `LocalScorer.score`; a student's support is not looked at."""

        def top(teacher: Rows, tokens_N: Tensor, _: Tensor) -> dict[str, Tensor]:
            return teacher_top_statistics(teacher, tokens_N, self.top_k)

        return _read_by_teachers(self, rollouts, top, needs_support=False, keep_hidden=keep_hidden)


@dataclass(frozen=True)
class ReferenceScorer:
    """The reference says how probable the tokens of rollouts, and those of the student's support, are to it.

    Fields:
      models: with a reference.
      max_tokens: most tokens in one forward.
    """

    models: ModelSet
    max_tokens: int

    def score(self, rollouts: Sequence[Rollout]) -> list[Rollout]:
        """Copies of the rollouts with the reference's reading filled in, in the same order.

        Raises:
          ConfigurationError: there is no reference.
        """
        models = self.models
        if models.reference is None:
            raise ConfigurationError(
                "the target compares with a reference, but none is loaded. Load one, or use another target."
            )
        reads_teachers = models.reference_reads == "teacher"
        prompts = _teacher_prompts(rollouts) if reads_teachers else [rollout.prompt_tokens for rollout in rollouts]
        return Reader(models.reference, models.vocabulary, self.max_tokens).read(
            rollouts, prompts, reference_statistics
        )


def _teacher_prompts(rollouts: Sequence[Rollout]) -> list[list[int]]:
    return [rollout.tokens_for_teacher for rollout in rollouts]


def _read_by_teachers(
    scorer: LocalScorer | TopScorer, rollouts: Sequence[Rollout], statistics: Statistics, **how: bool
) -> list[Rollout]:
    """The rollouts as the scorer's teachers have read them, each its own at once; `how`: as for `Reader.read`."""
    if not scorer.teachers:
        raise ConfigurationError("scoring needs a teacher, but only a student is loaded. Load a teacher.")

    def read(name: str | None, own: list[Rollout]) -> list[Rollout]:
        reader = Reader(teacher_named(scorer.teachers, name), scorer.vocabulary, scorer.max_tokens)
        return reader.read(own, _teacher_prompts(own), statistics, **how)

    return by_teacher(rollouts, read)
