"""The Triton kernels of the tiled loss against autograd: on a CPU in Triton's interpreter, on a GPU as they are.

Run as a program it does the former, because the interpreter must be switched on before Triton is imported:

    TRITON_INTERPRET=1 python -m tests.support.loss_agreement
"""

from __future__ import annotations

import math
import sys
from typing import Any, ClassVar

import torch

from tests.support.tiled_worlds import MERGED, PLAIN, World, assert_same, naive_full, tiled_full, world
from tutelage.divergences import ForwardKL, JensenShannon, ReverseKL
from tutelage.kernels import Head, Tiling, tiled_loss
from tutelage.kernels.triton_loss import TritonTileDivergence

FAMILY = (ReverseKL(), ForwardKL(), JensenShannon(), JensenShannon(target_share=0.1))

TILING = Tiling(5, 17)  # of 7 tokens and 41 words: both ragged


def cases() -> dict[str, tuple[World, float]]:
    """Worlds, and how near both must be."""
    plain = world(PLAIN, num_tokens=7)
    blocked_V = torch.zeros(len(plain.teacher_head.weight_VD), dtype=torch.float64)
    blocked_V[[2, 9, 30]] = -math.inf
    return {
        "float64": (world(MERGED, num_tokens=7), 1e-10),
        "soft cap": (world(MERGED, softcap=2.0, num_tokens=7), 1e-10),
        "float32": (world(MERGED, torch.float32, num_tokens=7), 1e-5),
        "bfloat16": (world(MERGED, torch.bfloat16, num_tokens=7), 2e-2),
        "impossible for the teacher": (plain._replace(teacher_head=Head(plain.teacher_head[0], blocked_V)), 1e-10),
    }


class Counted(TritonTileDivergence):
    """Says that it was there."""

    calls: ClassVar[int] = 0

    def gradient(self, *arguments: Any) -> torch.Tensor:
        Counted.calls += 1
        return super().gradient(*arguments)


if __name__ == "__main__":
    tiled_loss.tile_divergence_for = lambda device, jsd_share: Counted
    for name, (here, tolerance) in cases().items():
        for divergence in FAMILY if name == "float64" else FAMILY[::2]:
            assert_same(tiled_full(here, divergence, TILING), naive_full(here, divergence), tolerance)
    assert Counted.calls == 12 * 2 * 3, "tiles of all cases"
    print("agreed", file=sys.stderr)
