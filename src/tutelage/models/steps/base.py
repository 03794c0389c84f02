"""What runs one decode step: a forward over a few new tokens per row, which look at a cache.

Three numbers make a step's shapes: rows, new tokens of each row, visible slots. How far each row is filled is data on
the device. A member that prepares something for each shape rounds the last of them up with `slots`.

Axis letters: B rows, T new tokens of each row, E width of the model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from tutelage.models.caches import KVCache
from tutelage.models.forward import Forward

__all__ = ["MIN_POSITIONS", "DecodeStep"]

# Positions that a step which is compiled or captured prepares its forward for at first: a table of rotations that grows
# later costs a compilation, or moves.
MIN_POSITIONS = 2048


class DecodeStep(ABC):
    """One way to run `forward.decode`, with its numbers up to rounding. Only the eager one has a gradient."""

    def __init__(self, forward: Forward) -> None:
        self.forward = forward

    def slots(self, num_slots: int) -> int:
        """Slots that are reserved and visible where `num_slots` are needed: as many, or a few more."""
        return num_slots

    def new_cache(self, num_layers: int, num_rows: int, capacity: int, max_capacity: int | None) -> KVCache:
        """An empty cache that this step can work on; its memory is not taken yet."""
        return self.forward.cache_kind(num_layers, num_rows, self.slots(capacity), max_capacity)

    def __call__(self, tokens_BT: Tensor, positions_BT: Tensor, cache: KVCache, num_visible: int) -> Tensor:
        """Hidden states [B, T, E] of new tokens, whose keys and values are in the cache afterwards.

        Args:
          positions_BT, num_visible: see `KVCache.begin`; the cache grows where it must.
        """
        assert len(positions_BT) == cache.num_rows, f"{len(positions_BT)} rows of tokens for {cache.num_rows} of cache"
        num_visible = self.slots(num_visible)
        cache.reserve(num_visible)
        self.forward.prepare(num_visible)
        return self.run(tokens_BT, positions_BT, cache, num_visible)

    @abstractmethod
    def run(self, tokens_BT: Tensor, positions_BT: Tensor, cache: KVCache, num_visible: int) -> Tensor:
        """`forward.decode`, where the cache is large enough and the forward prepared."""
