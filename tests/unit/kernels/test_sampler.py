"""The draws have the laws they promise, by a chi-square test that notices the wrong law."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.support.kernel_agreement import excess
from tests.support.rows import related_rows
from tutelage import kernels
from tutelage.distributions import NO_TOKEN, trust_region_blend
from tutelage.kernels import BlendPoint, reference

INF = math.inf
DRAWS = 50_000


def uniforms(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def many(student: Tensor, teacher: Tensor, radius: float) -> tuple[Tensor, Tensor, BlendPoint, Tensor, Tensor]:
    """One pair of rows DRAWS times over, its point, and the enumerated mu and p."""
    mu = trust_region_blend(student.double(), teacher.double(), radius).logprobs_BV.exp()
    point = kernels.blend_point(student[None], teacher[None], radius)
    points = BlendPoint(*(part.expand(DRAWS) for part in point))
    return student.expand(DRAWS, -1), teacher.expand(DRAWS, -1), points, mu, student.double().softmax(-1)


@pytest.mark.statistics
@pytest.mark.parametrize("radius", [0.0, 0.01, 0.3, INF])
@pytest.mark.parametrize("vocabulary", [5, 300])
def test_draw_blend_has_the_law_of_the_blend(vocabulary: int, radius: float) -> None:
    (student,), (teacher,) = related_rows(1, vocabulary, 1.5, seed=vocabulary)
    student[1] = -INF
    *rows, points, mu, p = many(student, teacher, radius)
    tokens = kernels.draw_blend(*rows, points, uniforms(DRAWS))
    assert excess(tokens, mu) < 6
    if radius > 0.1:
        assert excess(kernels.draw_blend(*rows, points, uniforms(DRAWS, 1)), (0.7 * mu + 0.3 * p)) > 20


@pytest.mark.statistics
def test_small_probabilities_are_drawn_as_often_as_they_should_be() -> None:
    vocabulary, draws = 20_000, 1000
    student = torch.zeros(vocabulary)
    student[100] = 9.0  # about a quarter of the mass; the rest shares what is left
    rows = student.expand(draws, -1)
    point = kernels.blend_point(rows[:1], rows[:1], 0.0)
    tokens = kernels.draw_blend(rows, rows, BlendPoint(*(part.expand(draws) for part in point)), uniforms(draws))
    share = student.double().softmax(-1)[100].item()
    assert abs((tokens == 100).double().mean().item() - share) < 5 * math.sqrt(share * (1 - share) / draws)
    others = tokens[tokens != 100].double()
    assert abs(others.mean().item() / vocabulary - 0.5) < 5 / math.sqrt(12 * len(others))


def test_pieces_draw_the_same_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = related_rows(40, 2000, 2.0)
    point = kernels.blend_point(student, teacher, 0.05)
    expected = kernels.draw_blend(student, teacher, point, uniforms(40))
    monkeypatch.setattr(reference, "PIECE_ENTRIES_CPU", 512)
    assert torch.equal(kernels.draw_blend(student, teacher, point, uniforms(40)), expected)


def test_rows_without_mass_give_no_token() -> None:
    student, teacher = related_rows(6, 300, 2.0)
    student[0], teacher[1], student[2, 7], teacher[3, 9] = -INF, -INF, math.nan, math.nan
    student[4, 1:] = -INF
    point = kernels.blend_point(student, teacher, 0.01)
    tokens = kernels.draw_blend(student, teacher, point, uniforms(6))
    assert tokens[:5].tolist() == [NO_TOKEN] * 4 + [0]
    assert tokens[5] >= 0


def test_extreme_uniforms_draw_possible_tokens() -> None:
    extremes = torch.tensor([0.0, 2.0**-53, 0.5, math.nextafter(1, 0)], dtype=torch.float64)
    student, teacher = (row.expand(4, -1) for row in related_rows(1, 70, 5.0))
    student = student.masked_fill(torch.arange(70) % 3 > 0, -INF)
    point = kernels.blend_point(student, teacher, 0.05)
    assert (kernels.draw_blend(student, teacher, point, extremes) % 3 == 0).all()
