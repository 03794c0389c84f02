"""What a scorer is: it lets a model read answers that exist."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from tutelage.types import Rollout

__all__ = ["Scorer"]


class Scorer(Protocol):
    """Says what a model thinks of finished answers."""

    def score(self, rollouts: Sequence[Rollout], *, keep_hidden: bool = False) -> list[Rollout]:
        """Copies of the rollouts with the model's reading filled in, in the same order.

        Args:
          keep_hidden: keep what the model's head is applied to as well, where the model is here.
        """
