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

from tutelage.models.cache import RaggedCache
from tutelage.models.llama_forward import LlamaForward

__all__ = ["CompiledStep"]

BUCKET = 64
# Distinct shapes before torch.compile gives up on a function and runs it plainly; its own limit is 8.
MAX_SHAPES = 256
# Positions with known rotations from the start; a table that grows later costs a compilation.
MIN_ROTATIONS = 2048


class CompiledStep:
    """`LlamaForward.decode`, compiled."""

    def __init__(self, forward: LlamaForward) -> None:
        self._forward = forward
        self._uses_graphs = next(forward.decoder.parameters()).is_cuda
        self._step: Any = torch.compile(
            forward.step,
            dynamic=not self._uses_graphs,
            fullgraph=True,
            mode="reduce-overhead" if self._uses_graphs else None,
        )

    @staticmethod
    def bucket(extent: int) -> int:
        """`extent` rounded up to a multiple of 64."""
        return -(-extent // BUCKET) * BUCKET

    def __call__(self, tokens_BT: Tensor, positions_BT: Tensor, cache: RaggedCache, extent: int) -> Tensor:
        extent = self.bucket(extent)
        cache.begin(positions_BT, extent)
        self._forward.rotations(max(extent, MIN_ROTATIONS))
        states = [(layer.keys, layer.values) for layer in cache.layers]
        if self._uses_graphs:
            for pair in states:
                for tensor in pair:
                    torch._dynamo.mark_static_address(tensor)
            torch.compiler.cudagraph_mark_step_begin()
        with torch._dynamo.config.patch(recompile_limit=MAX_SHAPES, accumulated_recompile_limit=4 * MAX_SHAPES):
            hidden_BTE: Tensor = self._step(tokens_BT, positions_BT, states, extent)
        # A graph's output is overwritten by its next replay.
        return hidden_BTE.clone() if self._uses_graphs else hidden_BTE
