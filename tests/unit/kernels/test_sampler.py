"""The draws have the laws they promise, by a chi-square test that notices the wrong law; Philox is Philox."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.support.rows import related_rows
from tutelage import kernels
from tutelage.distributions import NO_TOKEN, trust_region_blend
from tutelage.kernels import BlendPoint, reference

INF = math.inf
DRAWS = 50_000


def uniforms(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def excess(tokens: Tensor, probs: Tensor) -> float:
    """Chi-square against `probs` in standard deviations above its mean; rare tokens share a cell. A few are normal."""
    assert (probs[tokens] > 0).all(), "a token of probability 0"
    counts, expected = tokens.bincount(minlength=len(probs)).double(), probs.double() * len(tokens)
    rare = expected < 10
    counts = torch.cat([counts[~rare], counts[rare].sum(0, keepdim=True)])
    expected = torch.cat([expected[~rare], expected[rare].sum(0, keepdim=True)])
    counts, expected = counts[expected > 0], expected[expected > 0]
    freedom = max(len(counts) - 1, 1)
    return float((((counts - expected).square() / expected).sum() - freedom) / math.sqrt(2 * freedom))


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
@pytest.mark.parametrize("radius", [0.01, 0.3, INF])
@pytest.mark.parametrize("vocabulary", [5, 300])
def test_draw_residual_has_the_law_of_the_residual(vocabulary: int, radius: float) -> None:
    (student,), (teacher,) = related_rows(1, vocabulary, 1.5, seed=vocabulary)
    student[1] = -INF
    *rows, points, mu, p = many(student, teacher, radius)
    residual = (mu - p).clamp_min(0)
    tokens = kernels.draw_residual(*rows, points, uniforms(DRAWS))
    assert excess(tokens, residual / residual.sum()) < 6
    wrong = torch.where(residual > 0, mu, 0)  # what forgetting to subtract the student would draw
    if vocabulary > 5:
        assert excess(tokens, wrong / wrong.sum()) > 20


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
    expected = [draw(student, teacher, point, uniforms(40)) for draw in (kernels.draw_blend, kernels.draw_residual)]
    monkeypatch.setattr(reference, "PIECE_ENTRIES_CPU", 512)
    for draw, tokens in zip((kernels.draw_blend, kernels.draw_residual), expected, strict=True):
        assert torch.equal(draw(student, teacher, point, uniforms(40)), tokens)


def test_rows_without_mass_give_no_token() -> None:
    student, teacher = related_rows(6, 300, 2.0)
    student[0], teacher[1], student[2, 7], teacher[3, 9] = -INF, -INF, math.nan, math.nan
    student[4, 1:] = -INF
    point = kernels.blend_point(student, teacher, 0.01)
    tokens = kernels.draw_blend(student, teacher, point, uniforms(6))
    assert tokens[:5].tolist() == [NO_TOKEN] * 4 + [0]
    assert tokens[5] >= 0
    assert kernels.draw_residual(student, teacher, point, uniforms(6))[:4].tolist() == [NO_TOKEN] * 4


def test_no_residual_where_the_blend_is_the_student() -> None:
    student, teacher = related_rows(50, 30, 2.0)
    teacher[:, 3] = student[:, 4] = -INF
    start = kernels.blend_point(student, teacher, 0)
    assert (kernels.draw_residual(student, teacher, start, uniforms(50)) == NO_TOKEN).all()
    equal = kernels.blend_point(student, student.clone(), 0.01)
    assert (kernels.draw_residual(student, student.clone(), equal, uniforms(50)) == NO_TOKEN).all()


def test_extreme_uniforms_draw_possible_tokens() -> None:
    extremes = torch.tensor([0.0, 2.0**-53, 0.5, math.nextafter(1, 0)], dtype=torch.float64)
    student, teacher = (row.expand(4, -1) for row in related_rows(1, 70, 5.0))
    student = student.masked_fill(torch.arange(70) % 3 > 0, -INF)
    point = kernels.blend_point(student, teacher, 0.05)
    for draw in (kernels.draw_blend, kernels.draw_residual):
        tokens = draw(student, teacher, point, extremes)
        assert (tokens % 3 == 0).all()


def test_sample_trust_region_reports_the_log_probability_of_its_token() -> None:
    student, teacher = (rows.reshape(4, 5, 60) for rows in related_rows(20, 60, 2.0))
    student[0, 0] = math.nan
    for radius in (0.0, 0.05, INF):
        tokens, logprobs, point = kernels.sample_trust_region(student, teacher, radius, uniforms(20).reshape(4, 5))
        expected = trust_region_blend(student, teacher, radius).logprobs_BV
        expected = expected.gather(-1, tokens.clamp_min(0).unsqueeze(-1)).squeeze(-1)
        assert tokens[0, 0] == NO_TOKEN and logprobs[0, 0].isnan()
        assert logprobs.dtype == torch.float32 and point.blend_B.shape == tokens.shape == (4, 5)
        torch.testing.assert_close(logprobs, expected, equal_nan=True, rtol=1e-5, atol=1e-5)
