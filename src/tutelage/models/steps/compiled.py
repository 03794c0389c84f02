"""The decode step through `torch.compile`: few shapes, fixed memory, no Python between the kernels.

How far rows are filled changes at every step. On a CPU one compilation serves all shapes, apart from those with a
single row or a single new token: four in all, 30 seconds for a model of three layers. A step of the embedded student
then takes half the time at 1 and 8 rows, nine tenths at 64. CUDA graphs are recorded for each shape, so there the
filled part is rounded up to a bucket, and only (rows, new tokens, bucket, capacity) tell shapes apart.

Left out on purpose: prefill and whole sequences, whose shapes never repeat.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tutelage.models.caches import KVCache
from tutelage.models.forward import Forward
from tutelage.models.steps.base import DecodeStep

__all__ = ["CompiledStep"]

BUCKET = 64
# Distinct shapes before torch.compile gives up on a function and runs it plainly; its own limit is 8.
MAX_SHAPES = 256
# Positions that the forward is prepared for from the start; a table of rotations that grows later costs a compilation.
MIN_POSITIONS = 2048


class CompiledStep(DecodeStep):
    """`forward.decode`, compiled; on CUDA with its CUDA graphs."""

    def __init__(self, forward: Forward) -> None:
        super().__init__(forward)
        forward.prepare(MIN_POSITIONS)
        self._decode: Any = None

    def slots(self, num_slots: int) -> int:
        """`num_slots` rounded up to a multiple of 64."""
        return -(-num_slots // BUCKET) * BUCKET

    def run(self, tokens_BT: Tensor, positions_BT: Tensor, cache: KVCache, num_visible: int) -> Tensor:
        """See `DecodeStep`."""
        uses_graphs = tokens_BT.is_cuda
        if self._decode is None:
            mode = "reduce-overhead" if uses_graphs else None
            self._decode = torch.compile(self.forward.decode, dynamic=not uses_graphs, fullgraph=True, mode=mode)
        if uses_graphs:
            for tensor in cache.tensors():
                torch._dynamo.mark_static_address(tensor)
            torch.compiler.cudagraph_mark_step_begin()
        with torch._dynamo.config.patch(recompile_limit=MAX_SHAPES, accumulated_recompile_limit=4 * MAX_SHAPES):
            hidden_BTE: Tensor = self._decode(tokens_BT, positions_BT, cache, num_visible)
        # A graph's output is overwritten by its next replay.
        return hidden_BTE.clone() if uses_graphs else hidden_BTE
