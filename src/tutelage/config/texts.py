"""Of which texts is the student's probability looked at?  Answers to prompts, such as a teacher's; ordinary text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from tutelage.config.model_sections import ModelConfig
from tutelage.config.models import context_length
from tutelage.config.schema import DataConfig, EvaluationTextConfig
from tutelage.errors import ConfigurationError, DataError
from tutelage.evaluation import TextSet
from tutelage.tasks import Columns, TemplateClock, load_problems, render_all, short_name
from tutelage.types import Prompt, Rollout

__all__ = ["build_text_sets", "check_text_lengths"]


def build_text_sets(
    items: Sequence[EvaluationTextConfig], data: DataConfig, tokenizer: Any, clock: TemplateClock, stop_id: int | None
) -> list[TextSet]:
    """Load texts whose probability is looked at.

    Answers follow their prompts, rendered as the training prompts are, and end with the stop token. Ordinary text is
    cut into tokens as it is; its first token is read and not predicted, since nothing stands before it.

    Raises:
      ConfigurationError: two sets of one name.
      DataError: an answer to a prompt that is too long, or a text of which no token is predicted.
    """
    found: list[TextSet] = []
    for item in items:
        name = item.name or short_name(item.path)
        if name in {each.name for each in found}:
            raise ConfigurationError(
                f"two of evaluation.texts are called {name!r}; results are told apart by name. Give each a `name`."
            )
        rollouts = []
        for place, (prompt, text) in enumerate(_texts(item, data, tokenizer, clock)):
            tokens = list(tokenizer(text, add_special_tokens=False)["input_ids"])
            if prompt is None:
                prompt, tokens = Prompt(tokens[:1]), tokens[1:]
            elif stop_id is not None:
                tokens.append(stop_id)
            if not tokens:
                raise DataError(
                    f"{item.path}: text {place}, counted from 0, has no token whose probability could be looked at. "
                    "Remove it."
                )
            rollouts.append(Rollout.answer_to(prompt, tokens, torch.full((len(tokens),), math.nan)))
        found.append(TextSet(name, item.prompt_column is not None, rollouts))
    return found


def check_text_lengths(student: ModelConfig, sets: Sequence[TextSet]) -> None:
    """Refuse texts that do not fit into the student's context.

    Raises:
      DataError: names the set.
    """
    limit = context_length(student)
    for texts in sets:
        longest = max(len(each.prompt_tokens) + len(each) for each in texts.rollouts)
        if limit is not None and longest > limit:
            raise DataError(
                f"a text of evaluation.texts {texts.name!r} has {longest} tokens with its prompt, but the student "
                f"holds {limit}{limit.remark}. Cut or remove texts that are longer."
            )


def _texts(
    item: EvaluationTextConfig, data: DataConfig, tokenizer: Any, clock: TemplateClock
) -> Iterator[tuple[Prompt | None, str]]:
    """Each text with its prompt; None = it is ordinary text."""
    if item.prompt_column is None:
        for row in load_problems(item.path, Columns(item.text_column, None), split=item.split, limit=item.limit):
            yield None, row.text
        return
    columns = Columns(item.prompt_column, item.text_column)
    rows = load_problems(item.path, columns, split=item.split, limit=item.limit)
    limit = data.max_prompt_tokens
    rendered = render_all(rows, tokenizer, {}, max_prompt_tokens=limit, style=data.style, clock=clock)
    if len(rendered.prompts) < len(rows):
        raise DataError(
            f"{item.path} has prompts of more than data.max_prompt_tokens = {limit} tokens, and an answer without its "
            "prompt says nothing. Raise that, or remove these rows."
        )
    for row, prompt in zip(rows, rendered.prompts, strict=True):
        yield prompt, row.answer or ""
