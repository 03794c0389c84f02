"""When was a run as good as it was to become?  The place at which a curve first reaches a value."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["first_reaching"]


def first_reaching(places: Sequence[float], values: Sequence[float], target: float) -> float | None:
    """The first place at which a curve, straight between its points, is at least `target`; None = it never is.

    Args:
      places: increasing; steps, or tokens or seconds spent until each of them.
      values: at each place; higher is better.
    """
    for i, value in enumerate(values):
        if value >= target:
            if i == 0:
                return places[0]
            before, start = values[i - 1], places[i - 1]
            return start + (places[i] - start) * (target - before) / (value - before)
    return None
