"""What is asked: training prompts and evaluation problems as the models read them, and whether they fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tutelage.config.clock import template_clock
from tutelage.config.models import check_teacher_names, context_length, named_teachers, other_models
from tutelage.config.schema import DataConfig, EvaluationSetConfig, ModelConfig, RunConfig
from tutelage.errors import ConfigurationError
from tutelage.evaluation import EvaluationSet
from tutelage.tasks import (
    BENCHMARKS,
    Problem,
    TemplateClock,
    load_problems,
    max_prompt_characters,
    render_all,
    short_name,
)
from tutelage.types import Prompt

__all__ = [
    "Prompts",
    "build_evaluation_sets",
    "check_lengths",
    "check_prompt_lengths",
    "load_evaluation_problems",
    "read_prompts",
]


@dataclass(frozen=True)
class Prompts:
    """The training prompts as both models read them, with what is needed to judge answers to them."""

    prompts: Sequence[Prompt]
    ids: Sequence[str]
    answers: Sequence[str | None]


def read_prompts(
    data: DataConfig,
    student_tokenizer: Any,
    teacher_tokenizer: Any,
    route_tokenizers: Mapping[str, Any] | None = None,
    clock: TemplateClock | None = None,
) -> Prompts:
    """Load and render the training prompts; their teacher reads each one through its own chat template.

    Args:
      route_tokenizers: of further teachers by name; the rows then say in `data.teacher_column` which one is theirs.
      clock: what chat templates are told when they ask for the date; None = as `data` says.
    """
    tokenizers = [student_tokenizer, teacher_tokenizer, *(route_tokenizers or {}).values()]
    max_characters = max_prompt_characters(tokenizers, data.max_prompt_tokens)
    problems = load_problems(
        data.path,
        prompt_column=data.prompt_column,
        answer_column=data.answer_column if data.verifier else None,
        teacher_column=data.teacher_column if route_tokenizers else None,
        split=data.split,
        limit=data.limit,
        max_characters=max_characters,
    )
    check_teacher_names(problems, route_tokenizers or {}, data.teacher_column)
    rendered = render_all(
        problems,
        student_tokenizer,
        teacher_tokenizer,
        max_prompt_tokens=data.max_prompt_tokens,
        system_prompt=data.system_prompt or None,
        teacher_system_prompt=data.teacher_system_prompt,
        use_chat_template=data.use_chat_template,
        chat_template_kwargs=data.chat_template_kwargs,
        teacher_chat_template_kwargs=data.teacher_chat_template_kwargs,
        route_tokenizers=route_tokenizers,
        chat_template=data.chat_template,
        clock=clock or template_clock(data),
        max_characters=max_characters,
    )
    kept = rendered.problems
    return Prompts(rendered.prompts, [problem.id for problem in kept], [problem.answer for problem in kept])


def build_evaluation_sets(
    items: Sequence[EvaluationSetConfig], data: DataConfig, tokenizer: Any, clock: TemplateClock | None = None
) -> list[EvaluationSet]:
    """Load and render problems to be judged on, put to the student exactly as the training prompts are."""
    names = [item.name or short_name(item.path) for item in items]
    for name in names:
        if names.count(name) > 1:
            raise ConfigurationError(
                f"two evaluation sets are called {name!r}; results are told apart by name. Give each a `name` of its "
                "own, or rename one of the files."
            )
    return [_evaluation_set(name, item, data, tokenizer, clock) for name, item in zip(names, items, strict=True)]


def _evaluation_set(
    name: str, item: EvaluationSetConfig, data: DataConfig, tokenizer: Any, clock: TemplateClock | None
) -> EvaluationSet:
    max_characters = max_prompt_characters([tokenizer], data.max_prompt_tokens)
    rendered = render_all(
        load_evaluation_problems(item, max_characters),
        tokenizer,
        None,
        max_prompt_tokens=data.max_prompt_tokens,
        system_prompt=data.system_prompt or None,
        use_chat_template=data.use_chat_template,
        chat_template_kwargs=data.chat_template_kwargs,
        chat_template=data.chat_template,
        clock=clock or template_clock(data),
        max_characters=max_characters,
    )
    answers = [problem.answer or "" for problem in rendered.problems]
    return EvaluationSet(name, rendered.prompts, [problem.id for problem in rendered.problems], answers)


def load_evaluation_problems(item: EvaluationSetConfig, max_characters: int | None = None) -> list[Problem]:
    """The problems of one set as they are read, not yet put to a model; a benchmark's name brings its columns.

    Args:
      max_characters: see `tasks.load_problems`.
    """
    if item.path in BENCHMARKS and not Path(item.path).exists():
        item = item.model_copy(update=asdict(BENCHMARKS[item.path]))
    return load_problems(
        item.path,
        prompt_column=item.prompt_column,
        answer_column=item.answer_column,
        split=item.split,
        limit=item.limit,
        max_characters=max_characters,
    )


def check_lengths(
    student: ModelConfig, teacher: ModelConfig | None, prompts: Sequence[Prompt], max_new_tokens: int, key: str
) -> None:
    """Refuse prompts and answers that do not fit together into the context of each model that reads them."""
    readers = [(student, [len(prompt.student_tokens) for prompt in prompts])]
    if teacher is not None:
        readers.append((teacher, [len(prompt.teacher_tokens or prompt.student_tokens) for prompt in prompts]))
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
