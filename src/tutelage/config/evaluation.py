"""What is a student judged on, and how?  Problem sets as the student reads them, and when they are looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tutelage.config.schema import DataConfig, EvaluationSetConfig, RunConfig
from tutelage.errors import ConfigurationError
from tutelage.evaluation import EvaluationSet
from tutelage.policies import Temperature
from tutelage.tasks import (
    BENCHMARKS,
    Problem,
    TemplateClock,
    load_problems,
    max_prompt_characters,
    render_all,
    short_name,
)
from tutelage.training import EvaluationPlan

__all__ = ["build_evaluation_sets", "evaluation_plan", "load_evaluation_problems"]


def build_evaluation_sets(
    items: Sequence[EvaluationSetConfig], data: DataConfig, tokenizer: Any, clock: TemplateClock
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
    name: str, item: EvaluationSetConfig, data: DataConfig, tokenizer: Any, clock: TemplateClock
) -> EvaluationSet:
    max_characters = max_prompt_characters([tokenizer], data.max_prompt_tokens)
    rendered = render_all(
        load_evaluation_problems(item, max_characters),
        tokenizer,
        {},
        max_prompt_tokens=data.max_prompt_tokens,
        style=data.style,
        clock=clock,
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


def evaluation_plan(config: RunConfig, sets: Sequence[EvaluationSet]) -> EvaluationPlan:
    """When a run is evaluated on its problem sets, and with which answers."""
    evaluation = config.evaluation
    return EvaluationPlan(
        sets=sets,
        policy=Temperature(evaluation.temperature).at(0),
        every=evaluation.every,
        num_samples=evaluation.num_samples,
        temperature=evaluation.temperature,
        max_new_tokens=config.evaluation_tokens,
        greedy_policy=Temperature(0.0).at(0) if evaluation.greedy else None,
    )
