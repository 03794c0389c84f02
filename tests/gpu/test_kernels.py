"""The Triton kernels on a CUDA device."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import Tensor

from tests.gpu import NEEDS_CUDA
from tests.support.kernel_agreement import (
    POLICIES,
    assert_agree,
    assert_compose_alike,
    assert_lawful,
    assert_policy_judges_alike,
    assert_read_alike,
    cases,
    excess,
)
from tests.support.layer_agreement import check_model, check_parts
from tutelage import kernels
from tutelage.policies import Policy

pytestmark = [
    *NEEDS_CUDA,
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton: pip install triton"),
]

CASES = cases(largest_vocabulary=152_064)


@pytest.mark.parametrize("case", CASES)
def test_kernels_agree_with_the_reference(case: str) -> None:
    assert_agree(case, *(part.cuda() for part in CASES[case]), repeats=20)


@pytest.mark.parametrize("case", CASES)
def test_compositions_agree_with_the_reference(case: str) -> None:
    assert_compose_alike(case, *(part.cuda() for part in CASES[case][:2]))


@pytest.mark.parametrize("case", CASES)
def test_rows_are_read_as_the_reference_reads_them(case: str) -> None:
    for side in CASES[case][:2]:
        assert_read_alike(case, side.cuda(), min(16, side.shape[1]))


def test_compositions_have_their_law() -> None:
    assert_lawful("cuda", num_strata=20_000)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_draws_of_a_real_vocabulary_have_their_law(dtype: torch.dtype) -> None:
    """50,000 draws from one row of 152,064 tokens."""
    weights = (torch.randn(152_064, generator=torch.Generator().manual_seed(0)) * 3).to(dtype).cuda()
    uniforms = torch.rand(50_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64).cuda()
    tokens = kernels.draw(weights.expand(len(uniforms), -1), uniforms)
    assert excess(tokens, weights.double().softmax(-1)) < 6


def sampled(student: Tensor, teacher: Tensor, radii: Tensor, uniforms: Tensor) -> Tensor:
    return kernels.draw_blend(student, teacher, kernels.blend_point(student, teacher, radii), uniforms)


def test_the_gpu_draws_what_the_cpu_draws() -> None:
    student, teacher, radii = CASES["V 335, std 0.1"]
    uniforms = torch.rand(len(radii), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = sampled(student, teacher, radii, uniforms)
    assert sampled(student.cuda(), teacher.cuda(), radii.cuda(), uniforms.cuda()).tolist() == expected.tolist()


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_the_gpu_judges_as_the_cpu_does(policy: Policy) -> None:
    assert_policy_judges_alike(policy, "cuda", (16, 4, 3000))


def test_the_whole_sampler_can_be_captured() -> None:
    student, teacher, radii = (part.cuda() for part in CASES["V 152064, std 2.5"])
    uniforms = torch.rand(len(radii), dtype=torch.float64, device="cuda")
    expected = sampled(student, teacher, radii, uniforms)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        tokens = sampled(student, teacher, radii, uniforms)
    graph.replay()
    torch.cuda.synchronize()
    assert tokens.tolist() == expected.tolist()


def test_the_kernels_of_a_layer_agree_with_the_plain_forms() -> None:
    check_parts("cuda")
    check_model("cuda")
