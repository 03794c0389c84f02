"""The tiled loss on a CUDA device, through the Triton kernels where these are installed."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from tests.gpu import NEEDS_CUDA
from tests.support.tiled_worlds import (
    MERGED,
    TILINGS,
    World,
    assert_same,
    both_on_support,
    naive_full,
    tiled_full,
    world,
)
from tutelage.divergences import Divergence, ForwardKL, JensenShannon, ReverseKL, SkewReverseKL
from tutelage.kernels import Head, Tiling
from tutelage.kernels.tile_divergence import TileDivergence, tile_divergence_for
from tutelage.models import Vocabulary

pytestmark = NEEDS_CUDA

MEMBERS = [ReverseKL(), ForwardKL(), JensenShannon(), JensenShannon(target_share=0.1), SkewReverseKL()]


def on_cuda(here: World) -> World:
    """The same world there; what needs a gradient is a leaf again."""

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().cuda().requires_grad_(tensor.requires_grad)

    def moved_head(head: Head) -> Head:
        return Head(moved(head.weight_VD), None if head.bias_V is None else moved(head.bias_V), head.softcap)

    return here._replace(
        hidden_ND=moved(here.hidden_ND),
        head=moved_head(here.head),
        teacher_hidden_ND=moved(here.teacher_hidden_ND),
        teacher_head=moved_head(here.teacher_head),
        tokens_N=moved(here.tokens_N),
        weights_N=moved(here.weights_N),
    )


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("divergence", MEMBERS, ids=repr)
def test_tiles_give_what_the_naive_form_gives(divergence: Divergence, softcap: float | None) -> None:
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 2e-5), (torch.bfloat16, 2e-2)):
        here = on_cuda(world(MERGED, dtype, softcap))
        for tiling in TILINGS:
            assert_same(tiled_full(here, divergence, tiling), naive_full(here, divergence), tolerance)


def test_a_support_and_its_rest() -> None:
    expected, found = both_on_support(on_cuda(world()), ReverseKL(top_k=4), 6, TILINGS)
    for each in found:
        assert_same(each, expected, 1e-10)


def test_a_real_vocabulary_in_tiles_of_the_default_size() -> None:
    size = 151_936
    vocabulary = Vocabulary(size, stop_ids=(151_645, 151_643), stop_id=151_645, padding_ids=(151_900,))
    here = on_cuda(world(vocabulary, torch.float32, num_tokens=1500, size=size))
    tiling = Tiling.fitting(vocabulary.view(here.hidden_ND.device), here.hidden_ND, 8)
    assert tiling.tokens < 1500 and tiling.vocabulary < size
    assert_same(tiled_full(here, ReverseKL(), tiling), naive_full(here, ReverseKL()), 2e-5)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton: pip install triton")
def test_kernels_are_taken_for_their_family_only() -> None:
    here = torch.device("cuda")
    assert tile_divergence_for(here, 0.5) is not TileDivergence
    assert (
        tile_divergence_for(here, None) is TileDivergence
        and tile_divergence_for(torch.device("cpu"), 0.5) is TileDivergence
    )
