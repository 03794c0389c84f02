"""What a scorer is: it lets a model read answers that exist."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from tutelage.types import Rollout

__all__ = ["Scorer", "by_teacher"]


class Scorer(Protocol):
    """Says what a model thinks of finished answers."""

    def score(self, rollouts: Sequence[Rollout], *, keep_hidden: bool = False) -> list[Rollout]:
        """Copies of the rollouts with the model's reading filled in, in the same order.

        Args:
          keep_hidden: keep what the model's head is applied to as well, where the model is here.
        """


def by_teacher(
    rollouts: Sequence[Rollout], read: Callable[[str | None, list[Rollout]], Sequence[Rollout]]
) -> list[Rollout]:
    """The rollouts as `read` returns them, in their order; it is called with each teacher's name and its own ones."""
    scored = list(rollouts)
    for name in dict.fromkeys(rollout.teacher_name for rollout in rollouts):
        places = [place for place, rollout in enumerate(rollouts) if rollout.teacher_name == name]
        for place, known in zip(places, read(name, [rollouts[place] for place in places]), strict=True):
            scored[place] = known
    return scored
