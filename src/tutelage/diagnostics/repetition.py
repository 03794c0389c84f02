"""How much does an answer repeat itself?  By tokens, exactly; no text is looked at."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["longest_repeat", "repeated_share"]


def repeated_share(tokens: Sequence[int], length: int = 4) -> float | None:
    """Share of an answer's n-grams that stood in it before: 1 - distinct n-grams / n-grams, n = `length`.

    Returns:
      A number in [0, 1); None where the answer is shorter than n.
    """
    if len(tokens) < length:
        return None
    numbers = single = _numbers(torch.tensor(tokens))
    for _ in range(length - 1):  # a stretch is its first token and, after it, a stretch that is one token shorter
        numbers = _joined(single, 1, numbers)
    return 1 - _num_different(numbers) / len(numbers)


def longest_repeat(tokens: Sequence[int]) -> int:
    """Tokens of the longest stretch that stands at two places of an answer; these may overlap. 0 = all tokens differ.

    Stretches of doubled length are numbered by pairs of numbers, until none stands twice; then the last doubling is
    filled up, from long to short. T log² T for T tokens.
    """
    if len(set(tokens)) == len(tokens):
        return 0
    doubled, length = [_numbers(torch.tensor(tokens))], 1
    while 2 * length < len(tokens):
        longer = _joined(doubled[-1], length, doubled[-1])
        if not _has_repeat(longer):
            break
        doubled.append(longer)
        length *= 2
    found = doubled.pop()
    while doubled:
        piece, piece_length = doubled.pop(), 2 ** len(doubled)
        if length + piece_length < len(tokens):
            longer = _joined(found, length, piece)
            if _has_repeat(longer):
                found, length = longer, length + piece_length
    return length


def _numbers(values: Tensor) -> Tensor:
    """Equal values get equal numbers from 0."""
    numbers: Tensor = torch.unique(values, return_inverse=True)[1]
    return numbers


def _joined(first: Tensor, length: int, second: Tensor) -> Tensor:
    """Numbers of the stretches that are one of `first`, of `length` tokens, followed by one of `second`."""
    following = second[length:]
    return _numbers(first[: len(following)] * _num_different(second) + following)


def _num_different(numbers: Tensor) -> int:
    return int(numbers.max()) + 1


def _has_repeat(numbers: Tensor) -> bool:
    return _num_different(numbers) < len(numbers)
