"""Which tokenizers does a run have?  One per model, each loaded once; all of them cut a text alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tutelage.config.models import ROUTE, is_served, other_models
from tutelage.config.schema import RunConfig
from tutelage.models import check_distinct, check_files, check_same_tokenizer, load_tokenizer

__all__ = ["Tokenizers", "load_tokenizers"]


@dataclass(frozen=True)
class Tokenizers:
    """The tokenizers of a run; their tokens are the same, their chat templates may differ.

    Fields:
      by_key: those of all models by the models' keys in the run file: "student", "teacher", "teacher.routes.code", ...
    """

    by_key: Mapping[str, Any]

    @property
    def student(self) -> Any:
        """The student's."""
        return self.by_key["student"]

    @property
    def teacher(self) -> Any:
        """That of the teacher for prompts that name none."""
        return self.by_key["teacher"]

    @property
    def teachers(self) -> dict[str | None, Any]:
        """Those of all teachers, by the name that prompts call them; None is the one for prompts that name none."""
        return dict(zip([None, *self.routes], [self.teacher, *self.routes.values()], strict=True))

    @property
    def routes(self) -> dict[str, Any]:
        """Those of further teachers, by the name that prompts call them."""
        return {key.removeprefix(ROUTE): each for key, each in self.by_key.items() if key.startswith(ROUTE)}


def load_tokenizers(config: RunConfig) -> Tokenizers:
    """Load the tokenizer of every model of a run.

    Raises:
      ConfigurationError: the teacher, or a further one, is the student.
      ModelError: there is no tokenizer, or no model beside one.
      VocabularyMismatchError: they differ in content.
    """
    student, teacher = config.student, config.teacher
    is_other = config.has_teacher and not teacher.is_student
    if is_other:
        check_distinct(student.source, teacher.source)
    for model in (student, teacher) if is_other and not is_served(teacher) else (student,):
        check_files(model.source)
    loaded = {"student": load_tokenizer(student.source)}
    loaded["teacher"] = load_tokenizer(teacher.source) if is_other else loaded["student"]
    if is_other:
        check_same_tokenizer(loaded["student"], loaded["teacher"])
    for key, other in other_models(config):
        if key.startswith(ROUTE):
            check_distinct(student.source, other.source)
        if not is_served(other):
            check_files(other.source)
        loaded[key] = load_tokenizer(other.source)
        check_same_tokenizer(loaded["student"], loaded[key], key)
    return Tokenizers(loaded)
