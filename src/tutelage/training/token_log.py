"""What of a rollout's tokens is kept in `samples.jsonl`: their pieces of text and a few rounded numbers each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tutelage.types import Rollout

__all__ = ["MAX_TOKENS", "pieces_of", "token_log"]

MAX_TOKENS = 256  # of one answer; with seven columns that is about 10 kB
DIGITS = 3
FIELDS = {
    "student_logprob": "student.logprobs_T",
    "teacher_logprob": "teacher.logprobs_T",
    "teacher_entropy": "teacher.entropy_T",
    "kl": "kl_to_student",
    "blend": "blend",
}
UNFINISHED = "\ufffd"  # what a decoder shows of a character whose last bytes are in the next token
TOKENS_PER_WINDOW = 8


def token_log(rollout: Rollout, decode: Callable[[Sequence[int]], str]) -> dict[str, Any]:
    """The first `MAX_TOKENS` tokens as columns of equal length, to three decimals; what was not recorded is left out.

    `text` are the pieces, the others fields of `Rollout` (nats; `replaced` is 1 or 0; None for an infinite number,
    such as the log-probability of a token that the teacher rules out).
    """
    columns: dict[str, Any] = {"text": pieces_of(rollout.response_tokens[:MAX_TOKENS], decode)}
    for name, path in FIELDS.items():
        values = rollout.tokenwise(path)
        if values is not None and not values.isnan().any():  # NaN = not known
            columns[name] = [_rounded(value) for value in values[:MAX_TOKENS].tolist()]
    if rollout.replaced is not None:
        columns["replaced"] = rollout.replaced[:MAX_TOKENS].int().tolist()
    return columns


def _rounded(value: float) -> float | None:
    return round(value, DIGITS) + 0.0 if math.isfinite(value) else None  # + 0.0: no sign where nothing is left


def pieces_of(tokens: Sequence[int], decode: Callable[[Sequence[int]], str]) -> list[str]:
    """The text that each token adds, so that the joined pieces are the decoded answer.

    A decoder may strip the space before the first word, and a character may be spread over tokens. So a token is
    decoded after a few earlier ones, and a token that ends inside a character is "", while the character's last token
    has it.
    """
    pieces: list[str] = []
    start, shown = 0, ""
    for place in range(len(tokens)):
        text = decode(tokens[start : place + 1])
        if text.endswith(UNFINISHED) and place + 1 < len(tokens):
            pieces.append("")
            continue
        pieces.append(text[len(shown) :])
        shown = text
        if place - start >= TOKENS_PER_WINDOW and text:
            last = decode(tokens[place : place + 1])
            if last and not last.startswith(UNFINISHED):
                start, shown = place, last
    return pieces
