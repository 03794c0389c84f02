"""The models of a run, and the vocabulary that they share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tutelage.errors import ConfigurationError
from tutelage.models.language_model import LanguageModel, as_language_model
from tutelage.models.vocabulary import Vocabulary, align

__all__ = ["ModelSet", "teacher_named"]

T = TypeVar("T")


@dataclass(frozen=True)
class ModelSet:
    """The models of a run, and the vocabulary that they share.

    Fields:
      student: the model that learns.
      vocabulary: of all of them, also of a teacher that is a server or that is not loaded.
      teachers: by the name that prompts call them; None is the one for prompts that name none.
      reference: a third model that some targets compare with; it takes no part in the sampling.
      reference_reads: whose prompt the reference reads, "student" or "teacher".
    """

    student: LanguageModel
    vocabulary: Vocabulary
    teachers: Mapping[str | None, LanguageModel] = field(default_factory=dict)
    reference: LanguageModel | None = None
    reference_reads: str = "student"

    @classmethod
    def of(
        cls,
        student: Any,
        teacher: Any = None,
        *,
        reference: Any = None,
        reference_reads: str = "student",
        vocabulary: Vocabulary | None = None,
    ) -> ModelSet:
        """Put models together; each is a LanguageModel or a bare `transformers` causal language model.

        Args:
          teacher: a model, models by name (see the fields), or None for a student alone.
          vocabulary: None = worked out from the models.
        Raises:
          VocabularyMismatchError: the models do not share a tokenizer.
        """
        student = as_language_model(student, "student")
        named = teacher if isinstance(teacher, Mapping) else {} if teacher is None else {None: teacher}
        teachers = {name: as_language_model(model, name or "teacher") for name, model in named.items()}
        if reference is not None:
            reference = as_language_model(reference, "reference")
        vocabulary = vocabulary or align(student, *teachers.values(), reference)
        return cls(student, vocabulary, teachers, reference, reference_reads)

    @property
    def teacher(self) -> LanguageModel | None:
        """The teacher of prompts that name none."""
        return self.teachers.get(None)

    @property
    def frozen(self) -> list[LanguageModel]:
        """Every model that learns nothing."""
        return [*self.teachers.values(), *([] if self.reference is None else [self.reference])]

    def teacher_named(self, name: str | None) -> LanguageModel:
        """See `teacher_named`."""
        return teacher_named(self.teachers, name)


def teacher_named(teachers: Mapping[str | None, T], name: str | None) -> T:
    """The teacher, or what speaks for it, that a prompt names.

    Raises:
      ConfigurationError: there is none of that name.
    """
    if name not in teachers:
        known = ", ".join("one without a name" if each is None else repr(each) for each in teachers)
        asked = "no teacher" if name is None else f"the teacher {name!r}"
        raise ConfigurationError(
            f"a prompt names {asked}; loaded are {known or 'none'}. Name one of these, or add a route."
        )
    return teachers[name]
