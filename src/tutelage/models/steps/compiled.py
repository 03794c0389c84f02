"""The decode step through `torch.compile`: no Python between the kernels of a CPU.

How far rows are filled changes at every step. One compilation serves all shapes, apart from those with a single row or
a single new token: four in all, 30 seconds for a model of three layers. A step of the embedded student then takes half
the time at 1 and 8 rows, nine tenths at 64.

Left out on purpose: CUDA, where a compilation for each shape took minutes and captured graphs take milliseconds
(`GraphedStep`); prefill and whole sequences, whose shapes never repeat.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tutelage.models.caches import KVCache
from tutelage.models.forward import Forward
from tutelage.models.steps.base import MIN_POSITIONS, DecodeStep

__all__ = ["CompiledStep"]

BUCKET = 64
# Distinct shapes before torch.compile gives up on a function and runs it plainly; its own limit is 8.
MAX_SHAPES = 256


class CompiledStep(DecodeStep):
    """`forward.decode`, compiled for shapes of any size."""

    def __init__(self, forward: Forward) -> None:
        super().__init__(forward)
        forward.prepare(MIN_POSITIONS)
        self._decode: Any = None

    def slots(self, num_slots: int) -> int:
        """`num_slots` rounded up to a multiple of 64."""
        return -(-num_slots // BUCKET) * BUCKET

    def run(self, tokens_BT: Tensor, positions_BT: Tensor, cache: KVCache, num_visible: int) -> Tensor:
        """See `DecodeStep`."""
        if self._decode is None:
            self._decode = torch.compile(self.forward.decode, dynamic=True, fullgraph=True)
        with torch._dynamo.config.patch(recompile_limit=MAX_SHAPES, accumulated_recompile_limit=4 * MAX_SHAPES):
            hidden_BTE: Tensor = self._decode(tokens_BT, positions_BT, cache, num_visible)
        return hidden_BTE
