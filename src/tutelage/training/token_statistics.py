"""Numbers per token that terms of the objective report beside the loss, put together over passes and processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

__all__ = ["TokenStatistics", "combined"]

Entry = tuple[str, float, int]  # name, sum or extreme of so many tokens, how many they are


class TokenStatistics:
    """What is known of the tokens of one process; owns a few numbers per pass and no tensor.

    A name that ends in _min or _max stands for the smallest or largest value, any other for the mean over all tokens
    that were added under it, whichever pass, process or term they come from.
    """

    def __init__(self) -> None:
        self._entries: list[Entry] = []

    def add(self, values: Sequence[tuple[str, Tensor]]) -> None:
        """Add named numbers per token, [n] each, n > 0."""
        if not values:
            return
        # One copy to the host for all of them. float32 holds a count of 2^24 tokens; not every device has float64.
        reduced = torch.stack([_reduction(name)(value_n.float()) for name, value_n in values])
        counts = [len(value_n) for _, value_n in values]
        names = [name for name, _ in values]
        self._entries += zip(names, reduced.tolist(), counts, strict=True)

    def result(self, gather: Callable[[list[Entry]], list[Entry]]) -> dict[str, float]:
        """Every finite number over the tokens of all processes. `gather`: the entries of all of them."""
        found: dict[str, list[tuple[float, int]]] = {}
        for name, value, count in gather(self._entries):
            found.setdefault(name, []).append((value, count))
        joined = {name: _joined(name, parts) for name, parts in found.items()}
        return {name: value for name, value in joined.items() if math.isfinite(value)}


def combined(numbers: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Those of several terms or updates as one: extremes stay extremes, others are means over those that have one."""
    names = dict.fromkeys(name for each in numbers for name in each)
    return {name: _joined(name, [(each[name], 1) for each in numbers if name in each]) for name in names}


def _reduction(name: str) -> Callable[[Tensor], Tensor]:
    return torch.amin if name.endswith("_min") else torch.amax if name.endswith("_max") else torch.sum


def _joined(name: str, parts: Sequence[tuple[float, int]]) -> float:
    if name.endswith(("_min", "_max")):
        return (min if name.endswith("_min") else max)(value for value, _ in parts)
    return math.fsum(value for value, _ in parts) / sum(count for _, count in parts)
