"""`blend_point` against a float64 bisection and `trust_region_blend`, over the same rows as the latter."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.support.rows import (
    RADII,
    bisect,
    blend64,
    kl64,
    log64,
    nearly_equal_rows,
    related_rows,
    rows_with_one_confident_side,
)
from tutelage import kernels
from tutelage.distributions import trust_region_blend
from tutelage.errors import ConfigurationError, VocabularyMismatchError
from tutelage.kernels import BlendPoint, reference

INF = math.inf
GRID = torch.tensor([*RADII, 100.0], dtype=torch.float64)


def assert_solves(student: Tensor, teacher: Tensor, radius: float | Tensor, iterations: int = 100) -> BlendPoint:
    """Everything that is promised of a point, checked in float64."""
    point = kernels.blend_point(student, teacher, radius)
    p, q = log64(student), log64(teacher)
    radius = torch.as_tensor(radius, dtype=torch.float64).expand(p.shape[:-1])
    torch.testing.assert_close(point.blend_B, bisect(p, q, radius, iterations), rtol=1e-3, atol=1e-30)
    mu = blend64(p, q, point.blend_B)
    kl = kl64(mu, p)
    tolerance = 1e-3 * radius + 1e-7
    inside = (point.blend_B > 0) & (point.blend_B < 1 - 1e-6)
    assert (kl <= radius + tolerance).all()
    assert (~inside | ((kl - radius).abs() <= tolerance)).all()
    torch.testing.assert_close(point.kl_to_student_B, kl, rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(log_blend(student, teacher, point), mu, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(student.double() - point.student_log_mass_B.unsqueeze(-1), p, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(teacher.double() - point.teacher_log_mass_B.unsqueeze(-1), q, rtol=1e-9, atol=1e-9)
    return point


def log_blend(student: Tensor, teacher: Tensor, point: BlendPoint) -> Tensor:
    """log mu from the raw logits and a point, as its docstring says."""
    blend = point.blend_B.unsqueeze(-1)
    between = (1 - blend) * student.double() + blend * teacher.double()
    logits = torch.where(blend == 0, student.double(), torch.where(blend == 1, teacher.double(), between))
    return logits - point.blend_log_mass_B.unsqueeze(-1)


@pytest.mark.parametrize("likeness", [0.0, 0.7, 0.999])
@pytest.mark.parametrize("std", [0.1, 1.0, 3.0, 8.0, 20.0])
@pytest.mark.parametrize("vocabulary", [2, 3, 17, 335])
def test_agrees_with_bisection(vocabulary: int, std: float, likeness: float) -> None:
    student, teacher = related_rows(len(GRID) * 6, vocabulary, std, likeness, seed=vocabulary)
    assert_solves(student, teacher, GRID.repeat(6))


@pytest.mark.sweeps
@pytest.mark.parametrize("std", [0.1, 3.0, 20.0])
def test_agrees_with_bisection_on_a_real_vocabulary(std: float) -> None:
    student, teacher = related_rows(5, 152_064, std, seed=1)
    assert_solves(student, teacher, torch.tensor([1e-6, 1e-3, 0.05, 0.5, 100.0]), iterations=40)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_agrees_with_bisection_in_every_type_and_at_any_offset(dtype: torch.dtype) -> None:
    student, teacher = (rows.to(dtype) for rows in related_rows(len(GRID) * 6, 50, 3.0))
    assert_solves(student, teacher, GRID.repeat(6))
    assert_solves(student + 5000, teacher - 3000, GRID.repeat(6))
    assert_solves(student.float() + 5000, teacher, GRID.repeat(6))


def test_logits_that_spread_over_thousands() -> None:
    student, teacher = related_rows(len(GRID) * 6, 40, 1000.0)
    assert_solves(student, teacher, GRID.repeat(6))


def test_nearly_equal_rows() -> None:
    for radius in RADII:
        assert_solves(*nearly_equal_rows(), radius)


def test_one_confident_side() -> None:
    for radius in RADII:
        assert_solves(*rows_with_one_confident_side(), radius)


def test_random_holes_on_both_sides() -> None:
    student, teacher = related_rows(400, 12, 3.0)
    holes = torch.rand(2, 400, 12, generator=torch.Generator().manual_seed(2)) < 0.2
    student, teacher = student.masked_fill(holes[0], -INF), teacher.masked_fill(holes[1], -INF)
    for radius in RADII:
        expected = trust_region_blend(student, teacher, radius)
        point = kernels.blend_point(student, teacher, radius)
        torch.testing.assert_close(point.blend_B.float(), expected.blend_B, rtol=1e-4, atol=0)
        torch.testing.assert_close(point.kl_to_student_B.float(), expected.kl_to_student_B, rtol=1e-4, atol=1e-7)


NONE = -INF


@pytest.mark.parametrize(
    ("student", "teacher", "radius"),
    [
        ([0, 0, 0], [NONE, 0, 0], 0.4),
        ([0, 0, 0], [NONE, 0, 0], 0.41),
        ([0, 0, NONE], [0, 0, 0], 0.01),
        ([0, 0, NONE], [math.log(3), 0, 5], 9.0),
        ([0, 0, NONE], [NONE, 0, 0], 0.69),
        ([0, 0, NONE], [NONE, 0, 0], 0.70),
        ([0, NONE, NONE], [0, 0, 0], 0.01),
        ([0, 0, 0], [0, NONE, NONE], 1.0),
        ([0, 0, 0], [0, NONE, NONE], 1.1),
        ([0, NONE, NONE], [0, NONE, NONE], 0.01),
        ([0, NONE, NONE], [NONE, 0, NONE], 100.0),
        ([0, 0, NONE, NONE], [NONE, NONE, 0, 0], 1e30),
        ([0, 0, NONE, NONE], [NONE, NONE, 0, 0], INF),
        ([0, 0, NONE], [0, 0, 0], INF),
        ([0, 1, NONE], [2, 0, 0], 50.0),
    ],
)
def test_impossible_tokens_are_treated_as_in_the_plain_solve(
    student: list[float], teacher: list[float], radius: float
) -> None:
    rows = torch.tensor([student]).float(), torch.tensor([teacher]).float()
    expected, point = trust_region_blend(*rows, radius), kernels.blend_point(*rows, radius)
    torch.testing.assert_close(point.blend_B.float(), expected.blend_B, rtol=1e-6, atol=0)
    assert (point.blend_B == 1) == (expected.blend_B == 1)
    torch.testing.assert_close(point.kl_to_student_B.float(), expected.kl_to_student_B, rtol=1e-5, atol=1e-7)
    logprobs = log_blend(*rows, point).nan_to_num(
        nan=-INF
    )  # inside the path 0 * -inf cannot occur, at its ends it does
    torch.testing.assert_close(logprobs.exp().float(), expected.logprobs_BV.exp(), rtol=1e-5, atol=1e-6)


def test_limits_are_exact() -> None:
    student, teacher = related_rows(6, 50, 3.0)
    start = kernels.blend_point(student, teacher, 0)
    assert (start.blend_B == 0).all() and (start.kl_to_student_B == 0).all()
    assert torch.equal(start.blend_log_mass_B, start.student_log_mass_B)
    distance = kl64(log64(teacher), log64(student))
    for radius in (distance * (1 + 1e-9), 1e3, INF):
        end = kernels.blend_point(student, teacher, radius)
        assert (end.blend_B == 1).all()
        assert torch.equal(end.blend_log_mass_B, end.teacher_log_mass_B)
        torch.testing.assert_close(end.kl_to_student_B, distance, rtol=1e-6, atol=0)
    for radius in (1e-9, 0.01, 100.0):
        assert (kernels.blend_point(student, student.clone(), radius).blend_B == 1).all()


def test_broken_rows_show_and_do_not_spread() -> None:
    student, teacher = related_rows(7, 30, 2.0)
    expected = kernels.blend_point(student, teacher, 0.01)
    student[0, 3], student[1], teacher[2, 4], teacher[3], student[4, 2] = math.nan, -INF, math.nan, -INF, INF
    point = kernels.blend_point(student, teacher, 0.01)
    for part, whole in zip(point, expected, strict=True):
        torch.testing.assert_close(part[5:], whole[5:], rtol=1e-12, atol=0)
    assert point.blend_B[:5].isnan().all() and point.blend_log_mass_B[:5].isnan().all()
    assert point.kl_to_student_B[:5].isnan().all()
    careless = kernels.blend_point(student, teacher, 0)
    assert (careless.blend_B[2:4] == 0).all() and careless.blend_log_mass_B[2:4].isfinite().all()


def test_pieces_of_rows_and_of_the_vocabulary_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = related_rows(9, 2000, 3.0)
    student[2, 100:900], teacher[3, :1500] = -INF, -INF
    wholes = [kernels.blend_point(student, teacher, radius) for radius in (0.01, 5.0)]
    monkeypatch.setattr(reference, "PIECE_ENTRIES_CPU", 512)
    for radius, whole in zip((0.01, 5.0), wholes, strict=True):
        for part, expected in zip(kernels.blend_point(student, teacher, radius), whole, strict=True):
            torch.testing.assert_close(part, expected, rtol=1e-9, atol=1e-12)


def test_ordinary_rows_are_read_three_times_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    for read in ("ends", "tilts"):
        original = getattr(reference._TorchReader, read)
        monkeypatch.setattr(
            reference._TorchReader,
            read,
            lambda *rest, read=read, original=original: (reads.append(read), original(*rest))[1],
        )
    student, teacher = related_rows(8, 32_000, 2.5)
    for radius in (1e-6, 1e-3, 0.01, 0.05):
        reads.clear()
        kernels.blend_point(student, teacher, radius)
        assert reads in (["ends", "tilts"], ["ends", "tilts", "tilts"])


def test_leading_axes_no_rows_and_no_gradient() -> None:
    student, teacher = (rows.reshape(2, 3, 20).requires_grad_() for rows in related_rows(6, 20, 2.0))
    radius = torch.tensor([0.001, 0.01, 0.1])
    point = kernels.blend_point(student, teacher, radius)
    flat = kernels.blend_point(student.reshape(6, 20), teacher.reshape(6, 20), radius.repeat(2))
    for part, expected in zip(point, flat, strict=True):
        assert part.shape == (2, 3) and not part.requires_grad
        assert torch.equal(part.reshape(6), expected)
    assert kernels.blend_point(torch.zeros(0, 5), torch.zeros(0, 5), 0.01).blend_B.shape == (0,)


def test_refusals() -> None:
    for radius in (-0.1, math.nan):
        with pytest.raises(ConfigurationError, match=r"kl_radius is (-0\.1|nan); .* Use 0 for pure student rollouts"):
            kernels.blend_point(torch.zeros(2, 3), torch.zeros(2, 3), radius)
    with pytest.raises(VocabularyMismatchError, match=r"\(2, 3\).*\(2, 4\)"):
        kernels.blend_point(torch.zeros(2, 3), torch.zeros(2, 4), 0.1)
