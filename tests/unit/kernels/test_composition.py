"""Numbers of a row say of each token what the whole row says, whatever the policy makes of student and teacher."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.support.kernel_agreement import compositions, teacher_of
from tests.support.rows import related_rows
from tutelage import kernels
from tutelage.kernels import Composition, reference

NUM_ROWS, VOCABULARY = 6, 300
LABELS = list(compositions(NUM_ROWS, VOCABULARY))

every_composition = pytest.mark.parametrize("label", LABELS)


def some_rows(label: str, dtype: torch.dtype = torch.float32) -> tuple[Composition, Tensor, Tensor]:
    """A composition, and rows with a few tokens that a side forbids."""
    composition = compositions(NUM_ROWS, VOCABULARY)[label]
    student, teacher = (logits.to(dtype) for logits in related_rows(NUM_ROWS, VOCABULARY, 2.0, seed=3))
    student[:, 5], teacher[:, 7] = -math.inf, -math.inf
    return composition, student, teacher_of(composition, student, teacher)


@pytest.mark.sweeps
@every_composition
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_a_few_numbers_give_every_tokens_probability(label: str, dtype: torch.dtype) -> None:
    composition, student, teacher = some_rows(label, dtype)
    rows, sums = composition.rows(student, teacher), kernels.read_composition(composition, student, teacher)
    for token in range(VOCABULARY):
        tokens = torch.full((NUM_ROWS,), token)
        found = composition.logprobs(sums, student[:, token], teacher[:, token], tokens)
        expected, atol = rows.logprobs_BV[:, token].double(), 1e-5 if dtype != torch.float64 else 1e-9
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=atol)
    torch.testing.assert_close(sums.kl_to_student_B, rows.kl_to_student().double(), rtol=1e-5, atol=1e-6)


@every_composition
def test_groups_of_rows_have_the_same_numbers(label: str, monkeypatch: pytest.MonkeyPatch) -> None:
    composition, student, teacher = some_rows(label)
    whole = kernels.read_composition(composition, student, teacher)
    monkeypatch.setattr(reference, "PIECE_ENTRIES_CPU", 2 * VOCABULARY)
    for field, expected in zip(kernels.read_composition(composition, student, teacher), whole, strict=True):
        torch.testing.assert_close(field, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("top_k", [1, 2, 3, 4, 5, 9])
def test_among_equal_logits_the_first_are_in_the_top_k(top_k: int) -> None:
    teacher = torch.tensor([[1.0, 3.0, 2.0, 2.0, -math.inf, 2.0]])
    wanted = [1, 2, 3, 5, 0][:top_k]
    rows = Composition(temperature=0.5, top_k=top_k).rows(torch.zeros_like(teacher), teacher)
    assert rows.top is not None
    assert rows.top.is_kept_BV[0].nonzero()[:, 0].tolist() == sorted(wanted)
    assert rows.tilted_share_B.item() == pytest.approx(1 - len(wanted) / 6, abs=1e-6)


@every_composition
def test_broken_rows_are_nan(label: str) -> None:
    composition, student, teacher = some_rows(label)
    student[0], teacher[2, 3] = -math.inf, math.nan
    sums = kernels.read_composition(composition, student, teacher)
    assert sums.kl_to_student_B[0].isnan()
    assert sums.kl_to_student_B[2].isnan()
    assert not sums.kl_to_student_B[[1, 3, 4, 5]].isnan().any()
