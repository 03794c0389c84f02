"""A key/value cache in which every row has its own length: key slot = token position.

A row's real tokens sit at slots 0, 1, 2, ... and whatever lies behind its length is garbage that the attention mask
hides. Rolling a row back is therefore nothing but writing at an earlier position next time, which is what a refused
draft needs. Rows can be repeated (samples that share a prompt), dropped (answers that are finished) and overwritten
with rows of another cache (a prompt that takes over a finished slot).

Axis letters: B rows, H heads, S slots, T new positions, D head size, N tokens of many rows laid end to end.

Left out on purpose: paging, quantisation and offloading.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

__all__ = ["RaggedCache"]

# A full cache grows by this factor, so that a long answer costs a handful of copies, not one per token.
GROWTH = 1.5


class RaggedLayer(CacheLayerMixin):
    """Keys and values of one layer, [B, H, S, D] each.

    Slots are next to one another, because that is what attention reads: with 64 rows of 256 slots, one new token
    attends 2.2 times as fast on a CPU as where heads are next to one another; writing is no slower to speak of.
    """

    is_sliding = False
    keys: Tensor
    values: Tensor

    def __init__(self, num_rows: int, capacity: int) -> None:
        super().__init__()
        self.num_rows, self.capacity = num_rows, capacity
        self.rows_B1: Tensor | None = None
        self.positions_BT: Tensor | None = None
        self.extent = 0

    def allocate(self, key_shape: tuple[int, int], value_shape: tuple[int, int], like: Tensor) -> None:
        """Reserve all rows and slots; shapes are (heads, head size)."""
        self.dtype, self.device = like.dtype, like.device
        # Zeros, not empty memory: a masked slot still gets weight 0, and 0 · NaN would be NaN.
        self.keys = like.new_zeros(self.num_rows, key_shape[0], self.capacity, key_shape[1])
        self.values = like.new_zeros(self.num_rows, value_shape[0], self.capacity, value_shape[1])
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        key_shape, value_shape = key_states.shape, value_states.shape
        self.allocate((key_shape[1], key_shape[3]), (value_shape[1], value_shape[3]), key_states)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """What a `transformers` layer calls: write at the announced positions, return all that a query may look at."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        # Under autocast the two come in types of their own.
        self.keys[self.rows_B1, :, self.positions_BT] = key_states.transpose(1, 2).to(self.dtype)
        self.values[self.rows_B1, :, self.positions_BT] = value_states.transpose(1, 2).to(self.dtype)
        return self.keys[:, :, : self.extent], self.values[:, :, : self.extent]

    def reserve(self, capacity: int) -> None:
        if self.is_initialized:
            self.keys, self.values = _grown(self.keys, capacity), _grown(self.values, capacity)
        self.capacity = capacity

    def select(self, rows_B: Tensor) -> None:
        if self.is_initialized:
            self.keys, self.values = self.keys.index_select(0, rows_B), self.values.index_select(0, rows_B)
        self.num_rows = len(rows_B)

    def copy_rows(self, source: RaggedLayer, source_rows_R: Tensor, rows_R: Tensor) -> None:
        if not source.is_initialized:
            return
        if not self.is_initialized:
            self.lazy_initialization(source.keys, source.values)
        slots = slice(source.capacity)
        self.keys[:, :, slots].index_copy_(0, rows_R, source.keys.index_select(0, source_rows_R))
        self.values[:, :, slots].index_copy_(0, rows_R, source.values.index_select(0, source_rows_R))

    def get_seq_length(self) -> int:
        return self.extent

    def get_max_length(self) -> int:
        return -1

    def get_max_cache_shape(self) -> int:  # the name before transformers 5.20
        return -1

    def get_mask_sizes(self, query_length: Any) -> tuple[int, int]:
        return self.extent, 0


def _grown(states: Tensor, capacity: int) -> Tensor:
    grown = states.new_zeros(*states.shape[:2], capacity, states.shape[3])
    grown[:, :, : states.shape[2]] = states
    return grown


class RaggedCache(Cache):
    """All layers of one model, as our own forward and the `transformers` forward both use it.

    Fields:
      num_rows, capacity: rows and slots; the rows change with `select` only, the slots grow when more are needed.
      max_capacity: slots that no row will exceed, so that none are reserved beyond them in advance; None = unknown.

    The cache never reads lengths from the device: the caller, who knows them, says how far rows are filled.
    """

    layers: list[RaggedLayer]  # type: ignore[assignment]

    def __init__(self, num_layers: int, num_rows: int, capacity: int, max_capacity: int | None = None) -> None:
        super().__init__(layers=[RaggedLayer(num_rows, capacity) for _ in range(num_layers)])
        self.num_rows, self.capacity, self.max_capacity = num_rows, capacity, max_capacity

    def begin(self, positions_BT: Tensor, extent: int) -> None:
        """Announce the next forward.

        Args:
          positions_BT: slot of each new token, at most one slot behind the row's filled part; writing over filled slots
            rolls the row back.
          extent: 1 + the largest position of any row, now or before, that a query of this forward may look at.
        """
        assert len(positions_BT) == self.num_rows, f"{len(positions_BT)} rows of tokens for {self.num_rows} of cache"
        self.reserve(extent)
        rows_B1 = torch.arange(self.num_rows, device=positions_BT.device)[:, None]
        for layer in self.layers:
            layer.rows_B1, layer.positions_BT, layer.extent = rows_B1, positions_BT, extent

    def reserve(self, capacity: int) -> None:
        """Make room for at least `capacity` slots; what is cached stays."""
        if capacity <= self.capacity:
            return
        grown = int(self.capacity * GROWTH)
        self.capacity = max(capacity, grown if self.max_capacity is None else min(grown, self.max_capacity))
        for layer in self.layers:
            layer.reserve(self.capacity)

    def select(self, rows_B: Tensor) -> None:
        """Keep, repeat or reorder rows: row i of the cache becomes the old row `rows_B[i]`."""
        for layer in self.layers:
            layer.select(rows_B)
        self.num_rows = len(rows_B)

    def copy_rows(self, source: RaggedCache, source_rows_R: Tensor, rows_R: Tensor) -> None:
        """Overwrite rows `rows_R` with the rows `source_rows_R` of another cache, slot by slot; grows if needed.

        Slots behind the source's capacity keep what they had: garbage, as behind the end of any row.
        """
        self.reserve(source.capacity)
        for layer, source_layer in zip(self.layers, source.layers, strict=True):
            layer.copy_rows(source_layer, source_rows_R, rows_R)
