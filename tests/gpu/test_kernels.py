"""The Triton kernels on a CUDA device."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from tests.gpu import NEEDS_CUDA
from tests.support.kernel_agreement import assert_agree, cases
from tutelage import kernels

pytestmark = [
    *NEEDS_CUDA,
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton: pip install triton"),
]

CASES = cases(largest_vocabulary=152_064)


@pytest.mark.parametrize("case", CASES)
def test_kernels_agree_with_the_reference(case: str) -> None:
    assert_agree(case, *(part.cuda() for part in CASES[case]), repeats=20)


def test_the_gpu_draws_what_the_cpu_draws() -> None:
    student, teacher, radii = CASES["V 335, std 0.1"]
    uniforms = torch.rand(len(radii), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected, _, _ = kernels.sample_trust_region(student, teacher, radii, uniforms)
    tokens, _, _ = kernels.sample_trust_region(student.cuda(), teacher.cuda(), radii.cuda(), uniforms.cuda())
    assert tokens.tolist() == expected.tolist()


def test_the_whole_sampler_can_be_captured() -> None:
    student, teacher, radii = (part.cuda() for part in CASES["V 152064, std 2.5"])
    uniforms = torch.rand(len(radii), dtype=torch.float64, device="cuda")
    expected = kernels.sample_trust_region(student, teacher, radii, uniforms)[0]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        tokens = kernels.sample_trust_region(student, teacher, radii, uniforms)[0]
    graph.replay()
    torch.cuda.synchronize()
    assert tokens.tolist() == expected.tolist()
