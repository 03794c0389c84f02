"""What is asked: the training prompts as the models read them, and whether prompts and answers fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tutelage.config.model_sections import ModelConfig
from tutelage.config.models import check_teacher_names, context_length, named_teachers, other_models
from tutelage.config.schema import DataConfig, RunConfig
from tutelage.config.tokenizers import Tokenizers
from tutelage.errors import ConfigurationError
from tutelage.tasks import Columns, Problem, TemplateClock, load_problems, max_prompt_characters, render_all
from tutelage.types import Prompt

__all__ = ["Prompts", "check_lengths", "check_prompt_lengths", "read_prompts"]


@dataclass(frozen=True)
class Prompts:
    """The training prompts as both models read them, with what is needed to judge answers to them."""

    prompts: Sequence[Prompt]
    problems: Sequence[Problem]

    @property
    def ids(self) -> list[str]:
        """What names each one in reports."""
        return [problem.id for problem in self.problems]

    @property
    def answers(self) -> list[str | None]:
        """The right answer to each one, where it is known and asked for."""
        return [problem.answer for problem in self.problems]

    def answered(self, limit: int) -> tuple[list[Prompt], list[str]]:
        """The first prompts whose right answer is known, and the answers."""
        pairs = zip(self.prompts, self.answers, strict=True)
        known = [(prompt, answer) for prompt, answer in pairs if answer is not None][:limit]
        return [prompt for prompt, _ in known], [answer for _, answer in known]


def read_prompts(
    data: DataConfig, tokenizers: Tokenizers, clock: TemplateClock, *, reads_answers: bool = False
) -> Prompts:
    """Load and render the training prompts; the teacher of each one reads it through its own chat template.

    Args:
      tokenizers: with further teachers, `data.teacher_column` names the teacher of each row.
      clock: the date for chat templates that ask for it.
      reads_answers: the right answers are wanted also where there is no verifier.
    """
    student, teachers, routes = tokenizers.student, tokenizers.teachers, tokenizers.routes
    max_characters = max_prompt_characters([student, *teachers.values()], data.max_prompt_tokens)
    problems = load_problems(
        data.path,
        Columns(
            data.prompt_column,
            data.answer_column if data.verifier or reads_answers else None,
            data.teacher_column if routes else None,
            data.privilege,
        ),
        split=data.split,
        limit=data.limit,
        max_characters=max_characters,
    )
    check_teacher_names(problems, routes, data.teacher_column)
    rendered = render_all(
        problems,
        student,
        teachers,
        max_prompt_tokens=data.max_prompt_tokens,
        style=data.style,
        clock=clock,
        max_characters=max_characters,
    )
    return Prompts(rendered.prompts, rendered.problems)


def check_lengths(
    student: ModelConfig, teacher: ModelConfig | None, prompts: Sequence[Prompt], max_new_tokens: int, key: str
) -> None:
    """Refuse prompts and answers that do not fit together into the context of each model that reads them."""
    readers = [(student, [len(prompt.student_tokens) for prompt in prompts])]
    if teacher is not None:
        readers.append((teacher, [len(prompt.tokens_for_teacher) for prompt in prompts]))
    for model, lengths in readers:
        limit = context_length(model)
        if limit is not None and max(lengths) + max_new_tokens > limit:
            room = limit - max(lengths)
            remedy = f"Set {key} to at most {room}, or lower" if room > 0 else "Lower"
            raise ConfigurationError(
                f"{key} is {max_new_tokens}, and the longest prompt has {max(lengths)} tokens; {model.path} holds "
                f"{limit} in all{limit.remark}. {remedy} max_prompt_tokens, so that longer prompts are left out."
            )


def check_prompt_lengths(config: RunConfig, prompts: Sequence[Prompt]) -> None:
    """Refuse training prompts and answers that do not fit into the context of any model that reads them."""
    tokens, key = config.rollout.max_new_tokens, "rollout.max_new_tokens"
    for name, teacher in named_teachers(config):
        own = [prompt for prompt in prompts if prompt.teacher_name == name]
        if own:
            check_lengths(config.student, teacher, own, tokens, key)
    for other, model in other_models(config):
        if other.startswith("teacher.experts") or (other == "reference" and config.reference.reads == "teacher"):
            check_lengths(config.student, model, prompts, tokens, key)
        elif other == "reference":
            check_lengths(model, None, prompts, tokens, key)
