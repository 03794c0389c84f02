"""A contiguous cache whose memory stays where it is, since a captured step reads and writes at fixed addresses.

Rows that are dropped or reordered are copied to the front of the memory. There may be memory for more rows than the
cache has; what lies in those is garbage. What was captured is kept with the memory (`Memory.captured`) until a larger
one takes its place, and a later cache may take over the memory together with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

from torch import Tensor

from tutelage.models.caches.contiguous import ContiguousCache, Memory

__all__ = ["FixedCache"]


class FixedCache(ContiguousCache):
    """A `ContiguousCache` in the first rows of a memory."""

    _at_end: Callable[[Memory], None] | None = None

    @classmethod
    def on(cls, memory: Memory, num_rows: int, max_capacity: int | None) -> Self:
        """An empty cache on the memory of one that is gone; there must be as many rows."""
        cache = cls(len(memory.layers), num_rows, memory.layers[0][0].shape[2], max_capacity)
        cache.memory = memory
        return cache

    def when_gone(self, take: Callable[[Memory], None]) -> None:
        """Call `take` with the memory once nothing refers to this cache any more."""
        self._at_end = take

    def __del__(self) -> None:
        if self._at_end is not None:
            self._at_end(self.memory)

    @property
    def num_allocated(self) -> int:
        """Rows that there is memory for."""
        return min((states.shape[0] for states in self.tensors()), default=0)

    def allocate(self, num_heads: int, head_size: int, like: Tensor) -> None:
        """See `KVCache`. Memory that was taken over is kept where it is of that kind, and zeroed."""
        shape, taken = (num_heads, self.capacity, head_size), self.tensors()
        if taken and all(s.shape[1:] == shape and s.dtype == like.dtype and s.device == like.device for s in taken):
            for states in taken:
                states.zero_()
        else:
            super().allocate(num_heads, head_size, like)

    def first_rows(self, num_rows: int) -> ContiguousCache:
        """The first rows of the memory as a cache of their own, in the same place."""
        rows = ContiguousCache(self.num_layers, num_rows, self.capacity)
        rows.memory = Memory([tuple(states[:num_rows] for states in layer) for layer in self._layers])
        return rows

    def reserve(self, capacity: int) -> None:
        """See `KVCache`; a memory that is larger has no more rows than the cache."""
        if capacity > self.capacity:
            self.memory = self.first_rows(self.num_rows).memory
            super().reserve(capacity)

    def read(self, layer: int, num_visible: int) -> tuple[Tensor, Tensor]:
        """See `KVCache`."""
        keys, values = super().read(layer, num_visible)
        return keys[: self.num_rows], values[: self.num_rows]

    def select(self, rows_B: Tensor) -> None:
        """See `CachedRows`."""
        if len(rows_B) > self.num_allocated:
            super().select(rows_B)
            return
        for states in self.tensors():
            states[: len(rows_B)] = states.index_select(0, rows_B)
        self.num_rows = len(rows_B)
