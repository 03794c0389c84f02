"""Can a model read this? Checked for every model before it reads: no empty prompt, no text beyond its context, no token
that it has no embedding for."""

from __future__ import annotations

from collections.abc import Sequence

from tutelage.errors import DataError
from tutelage.models import LanguageModel

__all__ = ["check_readable"]


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
