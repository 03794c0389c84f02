"""What records ask of whole rows, from logits that are read once: with the kernel's answers given by plain torch."""

from __future__ import annotations

import math
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from tests.support.rows import related_rows
from tests.support.tiny_models import make_model
from tutelage.distributions import normalise
from tutelage.kernels import Rows, read_rows, rows
from tutelage.policies import TrustRegion
from tutelage.rollout import PairedEngine
from tutelage.rollout.decoding import rounds
from tutelage.rollout.decoding.statistics import student_statistics, teacher_statistics, teacher_top_statistics
from tutelage.types import Rollout


class Read:
    """As `triton_statistics.read`, and counts."""

    count = 0

    def __call__(self, logits_NV: Tensor, ids_NK: Tensor | None = None) -> Tensor:
        self.count += 1
        wide_NV = logits_NV.double()
        rest_NV = wide_NV if ids_NK is None else wide_NV.scatter(-1, ids_NK, -math.inf)
        mass_N = wide_NV.logsumexp(-1)
        probs_NV = (wide_NV - mass_N[:, None]).exp()
        entropy_N = mass_N - torch.where(probs_NV > 0, probs_NV * wide_NV, 0).sum(-1)
        return torch.stack([mass_N, entropy_N, rest_NV.logsumexp(-1) - mass_N])


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Read:
    """Of a device with kernels."""
    read = Read()
    monkeypatch.setitem(sys.modules, "tutelage.kernels.triton_statistics", SimpleNamespace(read=read))
    monkeypatch.setattr(rows, "has_kernels", lambda device: True)
    return read


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_statistics_are_those_of_whole_rows(dtype: torch.dtype, read: Read) -> None:
    student, teacher = (logits.to(dtype) for logits in related_rows(20, 50, 2.0))
    student[:, 7] = -math.inf
    tokens = torch.arange(20)
    support = student_statistics(Rows(normalise(student)), tokens, 4)["support_ids"]
    asked = {
        1: lambda rows_of: student_statistics(rows_of(student), tokens, 4),
        2: lambda rows_of: teacher_statistics(rows_of(teacher), tokens, support),
        3: lambda rows_of: teacher_top_statistics(rows_of(teacher), tokens, 60),
    }
    for count, statistics in asked.items():
        found, wanted = statistics(read_rows), statistics(lambda logits: Rows(normalise(logits)))
        assert read.count == count, "one read each"
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            if value.dtype.is_floating_point:
                torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5, msg=lambda text, n=name: n + text)
            elif dtype != torch.bfloat16:  # in which several tokens are equally probable
                assert torch.equal(found[name], value), name


@pytest.mark.parametrize("num_late", [0, 1])
@pytest.mark.parametrize("draft_length", [1, 3])
def test_records_of_a_rollout_are_the_same(
    draft_length: int, num_late: int, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = PairedEngine(
        make_model("qwen3", vocab_size=24, stop_ids=7, seed=1),
        make_model("llama", vocab_size=28, stop_ids=[7, 8], seed=2),
        draft_length=draft_length,
    )

    def made() -> list[Rollout]:
        return engine.generate(TrustRegion(0.2), [[1, 2, 3], [4]], max_new_tokens=12, num_samples=2, seed=3)

    with monkeypatch.context() as patch:
        patch.setattr(rows, "has_kernels", lambda device: False)
        wanted = made()
    assert not read.count
    monkeypatch.setattr(rounds, "rounds_late", lambda device: num_late)
    monkeypatch.setattr(rounds, "has_kernels", lambda device: True)
    found = made()
    assert read.count
    for mine, other in zip(found, wanted, strict=True):
        assert mine.response_tokens == other.response_tokens
        assert torch.equal(mine.support_ids, other.support_ids)
        for path in ("student.logprobs_T", "student.entropy_T", "student.support_logprobs_TK", "teacher.entropy_T"):
            torch.testing.assert_close(mine.tokenwise(path), other.tokenwise(path), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            mine.tokenwise("teacher.tail_logprobs_T"), other.tokenwise("teacher.tail_logprobs_T"), rtol=1e-5, atol=1e-4
        )
