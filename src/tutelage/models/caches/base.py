"""What a key/value cache promises, and how new tokens attend to it.

Every row of a cache has its own length, and slot = token position: a row's real tokens sit at slots 0, 1, 2, ..., and
whatever lies after its length is garbage that the mask hides. Rolling a row back is therefore nothing but writing at an
earlier position next time, which is what a refused draft needs.

Lengths are data, never shapes. Where a row writes and what a query sees follow from a tensor of positions alone. The
number of visible slots is only an upper bound, so a decode step may round it up and meet few distinct shapes.

What belongs to one forward, its positions and its mask, is in a `CacheView` and not in the cache. A step that is
compiled or captured thus contains the mask, and reads nothing from the cache but tensors.

Axis letters: B rows, H heads of keys and values, Q heads of queries, S slots, T new positions, D head size, N tokens of
many rows laid end to end, R some of the rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["CacheView", "CachedRows", "KVCache"]


class CachedRows(ABC):
    """What an engine does with a cache: move rows, without asking what is stored for them."""

    @abstractmethod
    def select(self, rows_B: Tensor) -> None:
        """Keep, repeat or reorder rows: row i of the cache becomes the old row `rows_B[i]`."""

    @abstractmethod
    def roll_back(self, lengths_B: Tensor) -> None:
        """Let each row keep its first tokens, before it is read on from there.

        Args:
          lengths_B: tokens to keep: 0, or at least as many as at the last call, or when the row was filled after that.
        """

    @abstractmethod
    def copy_rows(self, source: CachedRows, source_rows_R: Tensor, rows_R: Tensor) -> None:
        """Overwrite rows `rows_R` with the rows `source_rows_R` of another cache of the same kind; grows if needed.

        Slots after the source's capacity are garbage afterwards, as after the end of any row.
        """


class KVCache(CachedRows):
    """Keys and values of all layers of one model.

    A member writes the abstract methods. It overrides `begin` where it attends in another way than by reading whole
    keys and values.

    Fields:
      num_layers, num_rows: the rows change with `select` only.
      capacity: slots of each row; they grow with `reserve`.
      max_capacity: slots that no row will exceed, so that none are reserved beyond them in advance; None = unknown.
    """

    def __init__(self, num_layers: int, num_rows: int, capacity: int, max_capacity: int | None = None) -> None:
        self.num_layers, self.num_rows = num_layers, num_rows
        self.capacity, self.max_capacity = capacity, max_capacity

    def empty(self, num_rows: int, capacity: int) -> Self:
        """A new cache of the same kind, for the same model."""
        return type(self)(self.num_layers, num_rows, capacity)

    def begin(self, positions_BT: Tensor, num_visible: int) -> CacheView:
        """Start one forward over new tokens.

        Args:
          positions_BT: slot of each new token, at most one slot after the row's filled part. Slots from a row's first
            new position on are overwritten or garbage, which rolls the row back.
          num_visible: at least 1 + the largest position of any query, at most `capacity`. A larger number changes
            nothing but the work.
        """
        return CacheView(self, positions_BT, num_visible)

    def roll_back(self, lengths_B: Tensor) -> None:
        """See `CachedRows`. Keys and values need none: what is dropped is garbage, and written over."""

    @abstractmethod
    def allocate(self, num_heads: int, head_size: int, like: Tensor) -> None:
        """Take the memory of all layers now, in the type and on the device of `like`.

        Without it each layer takes its own when it is first written. A step that is compiled or captured needs it.
        """

    @abstractmethod
    def tensors(self) -> list[Tensor]:
        """The memory taken so far."""

    @abstractmethod
    def reserve(self, capacity: int) -> None:
        """Make room for at least `capacity` slots; what is cached stays."""

    @abstractmethod
    def write(self, layer: int, rows: Tensor, positions: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store keys and values [..., H, D], cast to the cache's type; rows and positions broadcast to [...]."""

    @abstractmethod
    def read(self, layer: int, num_visible: int) -> tuple[Tensor, Tensor]:
        """Keys and values [B, H, num_visible, D] of one layer; garbage is finite."""


class CacheView:
    """One forward's view of a cache: new tokens write their keys and values, then look. Made by `KVCache.begin`."""

    def __init__(self, cache: KVCache, positions_BT: Tensor, num_visible: int) -> None:
        self.cache, self.positions_BT, self.num_visible = cache, positions_BT, num_visible
        self._rows_B1 = torch.arange(positions_BT.shape[0], device=positions_BT.device)[:, None]
        self._bias: Tensor | None = None

    def update(self, layer: int, keys_BTHD: Tensor, values_BTHD: Tensor) -> tuple[Tensor, Tensor]:
        """Write the new tokens; all keys and values that a query may look at, [B, H, S, D]."""
        self.cache.write(layer, self._rows_B1, self.positions_BT, keys_BTHD, values_BTHD)
        return self.cache.read(layer, self.num_visible)

    def attend(self, layer: int, queries_BTQD: Tensor, keys_BTHD: Tensor, values_BTHD: Tensor, scale: float) -> Tensor:
        """Write the new tokens, then look: softmax(scale · q k + mask) v, [B, T, Q · D].

        Args:
          queries_BTQD: head q reads the key head q // (Q / H).
          scale: what products of queries and keys are multiplied with.
        """
        keys, values = self.update(layer, keys_BTHD, values_BTHD)
        num_rows, num_new, num_queries, size = queries_BTQD.shape
        num_heads = keys_BTHD.shape[2]
        groups = num_queries // num_heads
        # Query heads that share a key head become more queries of that head: keys need not be repeated for them.
        queries = queries_BTQD.view(num_rows, num_new, num_heads, groups, size).permute(0, 2, 3, 1, 4).flatten(2, 3)
        if self._bias is None:
            self._bias = self._made_bias(groups, queries.dtype)
        attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=self._bias, scale=scale)
        return attended.view(num_rows, num_heads, groups, num_new, -1).permute(0, 3, 1, 2, 4).flatten(2)

    def visible_BTS(self, window: int | None = None) -> Tensor:
        """The mask: a query sees every slot up to its own position, or the last `window` of them."""
        slots_S = torch.arange(self.num_visible, device=self.positions_BT.device)
        last_BT1 = self.positions_BT[..., None]
        visible_BTS = slots_S <= last_BT1
        return visible_BTS if window is None else visible_BTS & (slots_S > last_BT1 - window)

    def _made_bias(self, groups: int, dtype: torch.dtype) -> Tensor:
        """The mask as what is added to scores, [B, 1, groups · T, S]; all layers share it."""
        visible_BTS = self.visible_BTS()
        bias_BTS = torch.zeros_like(visible_BTS, dtype=dtype).masked_fill_(~visible_BTS, float("-inf"))
        return bias_BTS[:, None, None].expand(-1, 1, groups, -1, -1).flatten(2, 3)
