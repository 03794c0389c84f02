"""The Triton kernels of the tiled loss against autograd: on a CPU in Triton's interpreter, on a GPU as they are.

Run as a program it does the former, because the interpreter must be switched on before Triton is imported:

    TRITON_INTERPRET=1 python -m tests.support.loss_agreement
"""

from __future__ import annotations

import math
import sys
from typing import Any, ClassVar

import torch

from tests.support.tiled_worlds import (
    MERGED,
    PLAIN,
    World,
    assert_same,
    both_on_support,
    learned,
    naive_full,
    narrow_and_exact,
    relative_errors,
    sampled,
    sides,
    tiled_full,
    world,
)
from tutelage.divergences import ForwardKL, JensenShannon, ReverseKL
from tutelage.kernels import FullDivergence, Head, Tiling, tiled_full_loss, tiled_loss, triton_loss
from tutelage.kernels.tile_divergence import TileDivergence
from tutelage.kernels.triton_loss import TritonLogits, TritonTileDivergence
from tutelage.models import Vocabulary

FAMILY = (ReverseKL(), ForwardKL(), JensenShannon(), JensenShannon(target_share=0.1))

TILING = Tiling(5, 17)  # of 7 tokens and 41 words: both ragged
REAL_SIZE = 248_320
REAL_BLOCK = 2**15  # entries of a program there: to the interpreter a program is what costs


def cases() -> dict[str, tuple[World, float]]:
    """Worlds, and how near both must be."""
    plain = world(PLAIN, num_tokens=7)
    blocked_V = torch.zeros(len(plain.teacher_head.weight_VD), dtype=torch.float64)
    blocked_V[[2, 9, 30]] = -math.inf
    return {
        "float64": (world(MERGED, num_tokens=7), 1e-10),
        "soft cap": (world(MERGED, softcap=2.0, num_tokens=7), 1e-10),
        "float32": (world(MERGED, torch.float32, num_tokens=7), 1e-5),
        "impossible for the teacher": (plain._replace(teacher_head=Head(plain.teacher_head[0], blocked_V)), 1e-10),
        "far from 0": (plain._replace(head=Head(plain.head[0], plain.head.bias_V + 3e4)), 1e-10),
    }


class Counted(TritonTileDivergence):
    """Says that it was there."""

    calls: ClassVar[int] = 0

    def gradient(self, *arguments: Any) -> torch.Tensor:
        Counted.calls += 1
        return super().gradient(*arguments)


def check_whole_vocabulary() -> None:
    """All members of the family, on hostile rows."""
    for name, (here, tolerance) in cases().items():
        for divergence in FAMILY if name == "float64" else FAMILY[::2]:
            assert_same(tiled_full(here, divergence, TILING), naive_full(here, divergence), tolerance)
    assert Counted.calls == (4 + 4 * 2) * 2, "blocks of all cases"


def check_real_vocabulary() -> None:
    """That of Qwen3.5: no multiple of a tile or of a program's entries."""
    stop_id = REAL_SIZE - 9
    vocabulary = Vocabulary(REAL_SIZE, stop_ids=(stop_id, 70, 3), stop_id=stop_id, padding_ids=(5, 200_000))
    here = world(vocabulary, num_tokens=4, size=REAL_SIZE)
    before = triton_loss.MAX_BLOCK, triton_loss.SCANNED_ENTRIES
    triton_loss.MAX_BLOCK, triton_loss.SCANNED_ENTRIES = REAL_BLOCK, 200_000
    assert_same(tiled_full(here, ReverseKL(), Tiling(5, 100_000)), naive_full(here, ReverseKL()), 1e-10)
    triton_loss.MAX_BLOCK, triton_loss.SCANNED_ENTRIES = before


def check_support() -> None:
    """A support and its rest, which has no target of its own."""
    for softcap in (None, 2.0):
        for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 2e-5)):
            expected, (found,) = both_on_support(world(MERGED, dtype, softcap), ReverseKL(top_k=4), 6, [TILING])
            assert_same(found, expected, tolerance)


def check_token_loss() -> None:
    """A function of the sampled tokens joins in the same passes."""
    here, divergence, found = world(softcap=2.0), FullDivergence(ReverseKL().between, 0.5, 1.0), []
    for tile_class in (Counted, TileDivergence):
        tiled_loss.tile_divergence_for = lambda *_, chosen=tile_class: chosen
        view = here.vocabulary.view(here.hidden_ND.device)
        pair = tiled_full_loss(*sides(here), view, divergence, sampled(here), TILING, lambda n, _: n.exp())
        found.append(learned(*pair, here))
    tiled_loss.tile_divergence_for = lambda *_: Counted
    assert_same(*found, 1e-10)


def check_half_precision() -> None:
    """In bfloat16, over several blocks, errors are a fraction of those of the naive form, whose logits are bfloat16."""
    narrow, exact = narrow_and_exact(size=300, num_tokens=40, spread=6.0)
    tiling = Tiling(8, 96)
    true = naive_full(exact, ReverseKL())
    mine = relative_errors(tiled_full(narrow, ReverseKL(), tiling), true)
    naive = relative_errors(naive_full(narrow, ReverseKL()), true)
    assert all(own < 0.4 * other for own, other in zip(mine, naive, strict=True)), (mine, naive)


if __name__ == "__main__":
    tiled_loss.tile_divergence_for = lambda *_: Counted
    tiled_loss.tiled_logits_for = lambda *_: TritonLogits
    check_whole_vocabulary()
    check_real_vocabulary()
    check_support()
    check_token_loss()
    check_half_precision()
    print("agreed", file=sys.stderr)
