"""How much is computed at once, and can a model read this?

Before a model reads a text it is checked: no empty prompt, no text beyond the model's context, no token that it has no
embedding for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tutelage.errors import ConfigurationError, DataError
from tutelage.models import LanguageModel, ModelSet
from tutelage.rollout.request import Request

__all__ = ["DEFAULT_SUPPORT_SIZE", "Limits", "check_prompts", "check_readable"]

DEFAULT_SUPPORT_SIZE = 16  # K, most probable tokens of the student that are recorded


@dataclass(frozen=True)
class Limits:
    """How much an engine computes at once. No limit changes a token.

    Fields:
      max_rows: most answers decoded at once; further ones take the place of those that end.
      cache_bytes: most memory of the caches of both models. None = half of an accelerator's memory, no limit on a CPU.
      score_tokens: most tokens in one forward over prompts or finished answers.
    Raises:
      ConfigurationError: a number below 1.
    """

    max_rows: int = 256
    cache_bytes: int | None = None
    score_tokens: int = 16_384

    def __post_init__(self) -> None:
        for name in ("max_rows", "score_tokens"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"rollout.{name} is {getattr(self, name)}; it must be at least 1.")


def check_prompts(models: ModelSet, request: Request, *, with_teacher: bool) -> None:
    """Refuse prompts that the student, or the teacher that answers for them, cannot read with their answers.

    Args:
      with_teacher: the teacher reads them, now or later.
    Raises:
      DataError: see `check_readable`.
    """
    for place, prompt in enumerate(request.prompts):
        check_readable(models.student, prompt.student_tokens, request.max_new_tokens, f"prompt {place}")
        teacher = models.teachers.get(prompt.teacher_name) if with_teacher else None
        if teacher is not None:
            check_readable(teacher, prompt.tokens_for_teacher, request.max_new_tokens, f"prompt {place}")


def check_readable(model: LanguageModel, tokens: Sequence[int], num_new: int, what: str) -> None:
    """Refuse a text that the model cannot read as it reads others.

    Args:
      tokens: of the text.
      num_new: how many more may be added to it.
      what: the text's name in the refusal, such as "prompt 3".
    Raises:
      DataError: it is empty, longer than the model's context with what is added, or has a token without an embedding.
    """
    if len(tokens) == 0:
        raise DataError(f"{what} is empty for {model.name}; at least one token is expected.")
    limit = model.context_length
    if limit is not None and len(tokens) + num_new > limit:
        added = f" and {num_new} may be added" if num_new else ""
        raise DataError(
            f"{what} has {len(tokens)} tokens{added}, more than the {limit} tokens of {model.name}{limit.remark}. "
            "Shorten the prompts or lower `max_new_tokens`."
        )
    largest = max(tokens)
    if largest >= model.padded_vocabulary_size:
        raise DataError(
            f"{what} has token {largest}, but {model.name} has embeddings for {model.padded_vocabulary_size} tokens "
            "only: model and tokenizer do not belong together. Load the tokenizer that the model was trained with."
        )
