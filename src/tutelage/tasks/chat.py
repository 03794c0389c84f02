"""Turns problems into the token ids that the student and the teacher read.

Each side reads a problem through its own chat template, or as plain text where it has none (`readers.py`). Prompts
that are too long are dropped here, with one warning, so that no question is cut later. Padding is not here.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tutelage.errors import ConfigurationError, DataError
from tutelage.tasks.clock import TemplateClock
from tutelage.tasks.problems import Problem
from tutelage.tasks.readers import PromptReader, max_prompt_characters
from tutelage.types import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["DroppedPromptsWarning", "PromptStyle", "RenderedPrompts", "render", "render_all"]


class DroppedPromptsWarning(UserWarning):
    """Some prompts are longer than `data.max_prompt_tokens` and take no part."""


@dataclass(frozen=True)
class RenderedPrompts:
    """Problems with the tokens that stand for them.

    Fields:
      problems, prompts: of equal length and in the order of the data.
      num_dropped: how many more there were, too long for `max_prompt_tokens`.
    """

    problems: list[Problem]
    prompts: list[Prompt]
    num_dropped: int


def render(
    problem: Problem,
    tokenizer: PreTrainedTokenizerBase,
    *,
    system_prompt: str | None = None,
    use_chat_template: bool | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    chat_template: str | None = None,
    clock: TemplateClock | None = None,
) -> list[int]:
    """Token ids of a problem, up to where the answer begins; the arguments are those of `PromptReader`.

    Returns:
        At least one id.
    Raises:
        ConfigurationError: a template is asked for and there is none, or a keyword is not the user's to set.
        DataError: chat messages without a template to write them out, or a template that refuses them, fails, has no
          end or leaves the question out.
    Warns:
        PromptWarning: see `PromptReader.warn`.
    """
    reader = PromptReader(
        tokenizer,
        system_prompt,
        use_chat_template,
        chat_template_kwargs or {},
        chat_template,
        clock or TemplateClock(),
    )
    (ids,) = reader.read([problem])
    assert ids is not None
    reader.warn(stacklevel=2)
    return ids


@dataclass(frozen=True)
class PromptStyle:
    """How problems are put to a student and its teachers.

    Fields:
      system_prompt, use_chat_template, chat_template_kwargs, chat_template: as in `PromptReader`.
      teacher_system_prompt, teacher_chat_template_kwargs: None = the student's.
    """

    system_prompt: str | None = None
    use_chat_template: bool | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    chat_template: str | None = None
    teacher_system_prompt: str | None = None
    teacher_chat_template_kwargs: Mapping[str, Any] | None = None

    def student_reader(self, tokenizer: PreTrainedTokenizerBase, clock: TemplateClock) -> PromptReader:
        """The student's way of reading."""
        keywords = self.chat_template_kwargs
        return PromptReader(tokenizer, self.system_prompt, self.use_chat_template, keywords, self.chat_template, clock)

    def teacher_reader(self, tokenizer: PreTrainedTokenizerBase, clock: TemplateClock) -> PromptReader:
        """The way of reading of a teacher with this tokenizer."""
        reader = self.student_reader(tokenizer, clock)
        if self.teacher_chat_template_kwargs is not None:
            reader.chat_template_kwargs = self.teacher_chat_template_kwargs
            reader.keywords_key = "data.teacher_chat_template_kwargs"
        if self.teacher_system_prompt is not None:
            reader.system_prompt = self.teacher_system_prompt
        return reader


def render_all(
    problems: Sequence[Problem],
    student_tokenizer: PreTrainedTokenizerBase,
    teacher_tokenizers: Mapping[str | None, PreTrainedTokenizerBase],
    *,
    max_prompt_tokens: int,
    style: PromptStyle | None = None,
    clock: TemplateClock | None = None,
    max_characters: int | None = None,
) -> RenderedPrompts:
    """Every problem as student and teacher read it, without those too long for either.

    Args:
        teacher_tokenizers: by the name that problems call their teacher, None where they name none. A problem whose
          teacher is not among them is read by the student alone.
        max_prompt_tokens: longest prompt that is kept, on either side.
        style: None = as the models' templates have it.
        clock: the date for templates that ask for it; None = now.
        max_characters: a longer text is dropped before it is tokenised; None = `max_prompt_characters`.
    Returns:
        `teacher_tokens` of a prompt is None where the teacher reads the same ids as the student.
    Raises:
        DataError: no problems at all, or none short enough; and as `render`.
        ConfigurationError: as `render`.
    Warns:
        DroppedPromptsWarning: once, with how many of how many are too long and the longest.
        PromptWarning: see `PromptReader.warn`.
    """
    if not problems:
        raise DataError("there are no problems to render; expected at least one. Check data.path and data.limit.")
    style, clock = style or PromptStyle(), clock or TemplateClock()
    student = style.student_reader(student_tokenizer, clock)
    teachers = {name: style.teacher_reader(tokenizer, clock) for name, tokenizer in teacher_tokenizers.items()}
    _check_name(style.chat_template, [student, *teachers.values()])

    if max_characters is None:
        max_characters = max_prompt_characters([student_tokenizer, *teacher_tokenizers.values()], max_prompt_tokens)
    student_ids = student.read(problems, max_characters)
    readers, teacher_ids = [student], list(student_ids)
    for name, teacher in teachers.items():
        places = [place for place, problem in enumerate(problems) if problem.teacher == name]
        if places and teacher.reads_as(student):
            places = [place for place in places if problems[place].teacher_prompt is not None]
        if places:
            readers.append(teacher)
            read = teacher.read([problems[place].for_teacher for place in places], max_characters)
            for place, ids in zip(places, read, strict=True):
                teacher_ids[place] = ids
    for reader in readers:
        reader.warn(stacklevel=2)
    return _without_long_ones(problems, student_ids, teacher_ids, max_prompt_tokens, max_characters)


def _check_name(name: str | None, readers: Sequence[PromptReader]) -> None:
    if name is not None and not any(isinstance(reader.tokenizer.chat_template, Mapping) for reader in readers):
        raise ConfigurationError(
            f"data.chat_template is {name!r}, but no tokenizer of the run has several chat templates to choose from. "
            "Leave it out."
        )


def _without_long_ones(
    problems: Sequence[Problem],
    student: Sequence[list[int] | None],
    teacher: Sequence[list[int] | None],
    max_prompt_tokens: int,
    max_characters: int,
) -> RenderedPrompts:
    """The prompts that fit; None stands for one whose very text is too long."""
    kept, prompts, lengths = [], [], []
    for problem, mine, theirs in zip(problems, student, teacher, strict=True):
        if mine is None or theirs is None:
            continue
        lengths.append(max(len(mine), len(theirs)))
        if lengths[-1] <= max_prompt_tokens:
            kept.append(problem)
            prompts.append(Prompt(mine, None if theirs == mine else theirs, teacher_name=problem.teacher))
    is_text_too_long = len(lengths) < len(problems)
    longest = f"more than {max_characters} characters" if is_text_too_long else f"{max(lengths)} tokens"
    if not kept:
        shortest = f"the shortest has {min(lengths)} tokens, " if lengths else ""
        raise DataError(
            f"all {len(problems)} prompts are longer than data.max_prompt_tokens = {max_prompt_tokens} ({shortest}the "
            f"longest {'has ' if not lengths else ''}{longest}); expected at least one that fits."
            " Raise data.max_prompt_tokens."
        )
    if num_dropped := len(problems) - len(kept):
        warnings.warn(
            f"{num_dropped} of {len(problems)} prompts are longer than data.max_prompt_tokens = {max_prompt_tokens} "
            f"(the longest has {longest}) and are left out. Raise data.max_prompt_tokens to keep them.",
            DroppedPromptsWarning,
            stacklevel=3,
        )
    return RenderedPrompts(kept, prompts, num_dropped)
