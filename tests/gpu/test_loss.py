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
    narrow_and_exact,
    relative_errors,
    tiled_full,
    world,
)
from tutelage.divergences import Divergence, ForwardKL, JensenShannon, ReverseKL, SkewReverseKL
from tutelage.kernels import FullDivergence, Head, Sampled, Side, Tiling, tiled_full_loss
from tutelage.kernels.tile_divergence import TileDivergence, tile_divergence_for, tiled_logits_for
from tutelage.kernels.tiles import TiledLogits
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
    assert tile_divergence_for(here, 0.5, keeps=True) is not TileDivergence
    others = [(here, None, True), (here, 0.5, False), (torch.device("cpu"), 0.5, True)]
    assert all(tile_divergence_for(*each) is TileDivergence for each in others)
    assert tiled_logits_for(here, keeps=True) is not TiledLogits
    assert tiled_logits_for(here, keeps=False) is tiled_logits_for(torch.device("cpu"), keeps=True) is TiledLogits


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton: pip install triton")
def test_in_half_precision_errors_are_a_fraction_of_the_naive_ones() -> None:
    narrow, exact = map(on_cuda, narrow_and_exact(size=5000, num_tokens=700, spread=6.0))
    true = naive_full(exact, ReverseKL())
    mine = relative_errors(tiled_full(narrow, ReverseKL(), Tiling(128, 1024)), true)
    naive = relative_errors(naive_full(narrow, ReverseKL()), true)
    assert all(own < 0.4 * other for own, other in zip(mine, naive, strict=True)), (mine, naive)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton: pip install triton")
@pytest.mark.parametrize("size", [151_936, 248_320])
def test_memory_at_a_real_size(size: int) -> None:
    """8,192 tokens of width 2,048 in bfloat16, the gradients themselves included."""
    generator = torch.Generator("cuda").manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device="cuda", dtype=torch.bfloat16)

    hidden, weight = drawn(8192, 2048).requires_grad_(), drawn(size, 2048).mul_(0.05).requires_grad_()
    teacher, vocabulary = Side(drawn(8192, 2048), Head(drawn(size, 2048).mul_(0.05))), Vocabulary(size)
    tiling = Tiling.fitting(vocabulary.view(hidden.device), hidden, 4)
    ids, ones = torch.zeros(8192, dtype=torch.int64, device="cuda"), torch.ones(8192, device="cuda")
    learner, divergence = Side(hidden, Head(weight)), FullDivergence(ReverseKL().between, 1.0, 1.0)
    (hidden[:64] @ weight.T).sum()  # cuBLAS takes its workspace
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    args = (learner, teacher, vocabulary.view(hidden.device), divergence, Sampled(ids, ones), tiling)
    tiled_full_loss(*args)[0].mean().backward()
    assert torch.cuda.max_memory_allocated() - before <= 1.3 * 2**30
