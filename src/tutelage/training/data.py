"""Which prompts belong to which step: a pure function of the step, so that resuming needs no state."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

__all__ = ["PromptOrder"]


@dataclass(frozen=True)
class PromptOrder:
    """A deterministic walk over the prompts, epoch after epoch.

    Fields:
      num_prompts: size of the prompt set.
      prompts_per_step: taken at every step; a step may reach over the end of an epoch.
      shuffles: a new order for every epoch, drawn from `seed`; otherwise the order of the file.
      seed: of the run.
    """

    num_prompts: int
    prompts_per_step: int
    shuffles: bool = False
    seed: int = 0

    def indices(self, step: int) -> list[int]:
        """Which prompts step k = 0, 1, ... uses."""
        first = step * self.prompts_per_step
        return [self._at(place) for place in range(first, first + self.prompts_per_step)]

    def others(self, step: int, attempt: int, used: Sequence[int]) -> list[int]:
        """Prompts at random that may take the place of some of a step's, none of which are in `used`."""
        drawn = random.Random(f"{self.seed}/others/{step}/{attempt}")
        rest = sorted(set(range(self.num_prompts)) - set(used))
        return drawn.sample(rest, min(self.prompts_per_step, len(rest)))

    def _at(self, place: int) -> int:
        epoch, within = divmod(place, self.num_prompts)
        return _epoch_order(self.num_prompts, self.seed, epoch)[within] if self.shuffles else within


@lru_cache(maxsize=2)
def _epoch_order(num_prompts: int, seed: int, epoch: int) -> tuple[int, ...]:
    order = list(range(num_prompts))
    random.Random(f"{seed}/order/{epoch}").shuffle(order)
    return tuple(order)
