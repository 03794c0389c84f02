"""A key/value cache in which every row has its own length: key slot = token position.

Prompts are right-padded, so a row's real tokens sit at slots 0, 1, 2, ... and whatever lies behind its length is
garbage that the attention mask hides. Rolling a row back is therefore nothing but writing at an earlier position next
time, which is what a refused draft needs. Rows can be repeated (samples that share a prompt) and dropped (answers that
are finished).

Left out on purpose: paging, quantisation and offloading.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

__all__ = ["RaggedCache"]

# Slots are reserved in steps of this growth factor, so that a long answer costs a handful of copies, not one per token.
GROWTH = 1.5


class RaggedLayer(CacheLayerMixin):
    """Keys and values of one layer, [B, heads, capacity, head size]."""

    is_sliding = False
    keys: Tensor
    values: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.positions_BT: Tensor | None = None
        self.is_prefill = False
        self.extent = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        # Zeros, not empty memory: a masked slot still gets weight 0, and 0 · NaN would be NaN.
        self.keys = key_states.new_zeros(*key_states.shape[:2], self.extent, key_states.shape[-1])
        self.values = value_states.new_zeros(*value_states.shape[:2], self.extent, value_states.shape[-1])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self.keys.shape[2] < self.extent:
            capacity = max(self.extent, int(self.keys.shape[2] * GROWTH))
            self.keys, self.values = _grown(self.keys, capacity), _grown(self.values, capacity)
        if self.is_prefill:
            self.keys[:, :, : key_states.shape[2]] = key_states
            self.values[:, :, : key_states.shape[2]] = value_states
        else:
            rows_B1 = torch.arange(key_states.shape[0], device=key_states.device)[:, None]
            self.keys[rows_B1, :, self.positions_BT] = key_states.transpose(1, 2)
            self.values[rows_B1, :, self.positions_BT] = value_states.transpose(1, 2)
        return self.keys[:, :, : self.extent], self.values[:, :, : self.extent]

    def select(self, rows_B: Tensor) -> None:
        if self.is_initialized:
            self.keys, self.values = self.keys.index_select(0, rows_B), self.values.index_select(0, rows_B)

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
    """All layers of one model. `begin` says where the next tokens go; the model's own forward then writes them.

    The cache never reads lengths from the device: the caller, who knows them, passes `extent`.
    """

    def __init__(self, num_layers: int) -> None:
        super().__init__(layers=[RaggedLayer() for _ in range(num_layers)])

    def begin(self, positions_BT: Tensor, extent: int, *, is_prefill: bool = False) -> None:
        """Announce the next forward.

        Args:
          positions_BT: slot of each new token, at most one slot behind the row's filled part; writing over filled slots
            rolls the row back.
          extent: 1 + the largest position of any row, now or before, that a query of this forward may look at.
          is_prefill: positions are 0..T-1 in every row, which allows a plain copy.
        """
        for layer in self.layers:
            assert isinstance(layer, RaggedLayer)
            layer.positions_BT, layer.extent, layer.is_prefill = positions_BT, extent, is_prefill

    def select(self, rows_B: Tensor) -> None:
        """Keep, repeat or reorder rows: row i of the cache becomes the old row `rows_B[i]`."""
        for layer in self.layers:
            assert isinstance(layer, RaggedLayer)
            layer.select(rows_B)
