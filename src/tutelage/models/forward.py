"""What computes hidden states: a forward of our own where the architecture is known, or the module's own.

Axis letters: B rows, T new tokens of each row, N wanted tokens of many sequences laid end to end, R some of the rows,
E width of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from tutelage.models.caches import KVCache

__all__ = ["Forward"]


class Forward(Protocol):
    """The decoder of one model, without its head."""

    @property
    def cache_kind(self) -> type[KVCache]:
        """What it decodes on, where a step asks for nothing else of a cache."""

    def allocate(self, cache: KVCache, dtype: torch.dtype | None) -> None:
        """Take a cache's memory where its shape is known beforehand; in the weights' type, or another."""

    def prepare(self, num_positions: int) -> None:
        """Do what `decode` needs once for texts of this length, and what must not be part of a compiled step."""

    def tensors(self) -> list[Tensor]:
        """Weights and tables that `decode` reads; the weights may be looked for only once after each `allocate`."""

    def decode(self, tokens_BT: Tensor, positions_BT: Tensor, cache: KVCache, num_visible: int) -> Tensor:
        """Hidden states [B, T, E] of new tokens, which are written to the cache and attend to it.

        Args:
          positions_BT, num_visible: see `KVCache.begin`.
        """

    def fill(self, sequences: Sequence[Sequence[int]], rows_R: Tensor, cache: KVCache) -> None:
        """Write keys and values of whole sequences into these rows of a cache, from slot 0 on."""

    def read(
        self,
        sequences: Sequence[Sequence[int]],
        starts: Sequence[int],
        device: torch.device,
        *,
        checkpoints: bool = False,
        compiles: bool = False,
    ) -> Tensor:
        """Hidden states [N, E] of whole sequences from `starts` on, laid end to end; differentiable, without a cache.

        Args:
          checkpoints: keep each layer's input only, and compute the layer again in backward; the same numbers.
          compiles: all but attention through `torch.compile`; the same up to rounding.
        """
