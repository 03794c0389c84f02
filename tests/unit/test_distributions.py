"""Probability algebra against plain float64 formulas, above all the trust-region solve and the draw.

The reference for the solve is a bisection in float64 on the same inputs: slow, obvious, and sharing no code with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.support.rows import (
    INF,
    RADII,
    bisect,
    blend64,
    draw,
    kl64,
    log64,
    nearly_equal_rows,
    related_rows,
    rows_with_one_confident_side,
)
from tutelage import distributions
from tutelage.distributions import (
    NO_TOKEN,
    arithmetic_blend,
    entropy,
    gather_logprobs,
    geometric_blend,
    kl_divergence,
    log_linear,
    normalise,
    sample,
    tail_logprobs,
    trust_region_blend,
)
from tutelage.errors import ConfigurationError, VocabularyMismatchError

BLEND_RELATIVE = 1e-3
KL_RELATIVE, KL_ABSOLUTE = 1e-3, 1e-7

seeded = settings(derandomize=True, deadline=None, max_examples=120)


def assert_solves(student: Tensor, teacher: Tensor, radius: float | Tensor, iterations: int = 100) -> Tensor:
    """Everything that is promised of a blend, checked in float64. Returns the blend."""
    result = trust_region_blend(student, teacher, radius)
    p, q = log64(student), log64(teacher)
    radius = torch.as_tensor(radius, dtype=torch.float64).expand(p.shape[:-1])
    assert_matches(result.blend_B, bisect(p, q, radius, iterations))

    tolerance = KL_RELATIVE * radius + KL_ABSOLUTE
    inside = (result.blend_B > 0) & (result.blend_B < 1 - 1e-6)
    for kl in (
        kl64(blend64(p, q, result.blend_B), p),
        kl64(result.logprobs_BV.double(), p),
        result.kl_to_student_B.double(),
    ):
        assert (kl <= radius + tolerance).all(), f"outside by {(kl - radius).max():.3g}"
        assert (~inside | ((kl - radius).abs() <= tolerance)).all(), "inside, and neither at the radius nor at the end"
    torch.testing.assert_close(
        result.kl_to_teacher_B.double(), kl64(result.logprobs_BV.double(), q), rtol=1e-5, atol=2e-6
    )
    torch.testing.assert_close(result.logprobs_BV.exp().sum(-1), torch.ones_like(result.blend_B), rtol=0, atol=2e-6)
    return result.blend_B


def assert_matches(blend: Tensor, expected: Tensor) -> None:
    error = (blend.double() - expected).abs()
    worst = (error / expected.clamp_min(1e-30)).max()
    assert (error <= BLEND_RELATIVE * expected + 1e-30).all(), f"blend off by {worst:.3g}, relative"


# --- normalise, entropy, kl_divergence, geometric_blend --------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_dtype", "dtype"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_computes_in_float32_or_wider(given_dtype: torch.dtype, dtype: torch.dtype) -> None:
    logits = draw(2, 3, 5).to(given_dtype)
    logprobs = normalise(logits)
    assert logprobs.dtype == dtype
    assert logprobs.shape == logits.shape
    assert entropy(logits).dtype == kl_divergence(logits, logits).dtype == dtype
    assert geometric_blend(logprobs, logprobs, 0.5).dtype == dtype
    blend = trust_region_blend(logits, logits.flip(-1), 0.01)
    assert {part.dtype for part in blend} == {dtype}
    assert blend.blend_B.shape == blend.kl_to_student_B.shape == blend.kl_to_teacher_B.shape == (2, 3)
    torch.testing.assert_close(logprobs.double(), log64(logits), rtol=1e-6, atol=1e-6)


def test_normalise_does_not_feel_a_common_offset() -> None:
    logits = (draw(4, 100) * 8).round() / 8  # eighths, which are exact beside 5000
    torch.testing.assert_close(normalise(logits + 5000), normalise(logits), rtol=0, atol=0)


def test_normalise_keeps_impossible_tokens_and_marks_empty_rows() -> None:
    logprobs = normalise(torch.tensor([[0.0, -INF, 0.0], [-INF, -INF, -INF]]))
    torch.testing.assert_close(logprobs[0], torch.tensor([-math.log(2), -INF, -math.log(2)]))
    assert logprobs[1].isnan().all()


def test_entropy_of_uniform_and_certain_rows() -> None:
    logprobs = normalise(torch.tensor([[0.0, 0.0, 0.0, 0.0], [3.0, -INF, -INF, -INF], [1.0, 1.0, -INF, -INF]]))
    torch.testing.assert_close(entropy(logprobs), torch.tensor([math.log(4), 0.0, math.log(2)]))


def test_kl_divergence_is_directed() -> None:
    p, q = torch.tensor([0.6, 0.3, 0.1]).log(), torch.tensor([0.2, 0.3, 0.5]).log()
    assert kl_divergence(q, p).item() == pytest.approx(0.584996, abs=1e-6)
    assert kl_divergence(p, q).item() == pytest.approx(0.498224, abs=1e-6)


@pytest.mark.parametrize(
    ("p", "q", "expected"),
    [
        ([0.0, -INF], [math.log(0.5)] * 2, math.log(2)),
        ([math.log(0.5)] * 2, [0.0, -INF], INF),
        ([0.0, -INF], [0.0, -INF], 0.0),
        ([0.0, -INF], [-INF, 0.0], INF),
        ([0.0, -200.0], [0.0, -INF], INF),  # e^-200 underflows, yet is not nothing
        ([0.0, -INF], [0.0, -200.0], 0.0),
    ],
)
def test_kl_divergence_at_zeros(p: list[float], q: list[float], expected: float) -> None:
    assert kl_divergence(torch.tensor(p), torch.tensor(q)).item() == pytest.approx(expected)


def test_an_infinite_kl_has_a_finite_gradient() -> None:
    """The tokens that make it infinite add none, so that a row left out of a loss cannot make the gradient NaN."""
    p, q = torch.tensor([1.0, 2.0, 0.5, -INF], requires_grad=True), torch.tensor([1.0, -INF, 0.0, -INF])
    kl_divergence(normalise(p), normalise(q)).backward()
    assert p.grad is not None and p.grad.isfinite().all()


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_arithmetic_blend_is_the_mixture(weight: float) -> None:
    p, q = torch.tensor([0.0, 0.0, 0.3, 0.7]).double(), torch.tensor([0.0, 0.6, 0.4, 0.0]).double()
    found = arithmetic_blend(p.log(), q.log(), weight)
    torch.testing.assert_close(found.exp(), (1 - weight) * p + weight * q)
    assert found[0] == -INF


@pytest.mark.parametrize(
    "function",
    [
        lambda p, q: normalise(p).masked_fill(p == -INF, 0),
        lambda p, q: entropy(normalise(p)),
        lambda p, q: kl_divergence(normalise(p), normalise(q)),
        lambda p, q: kl_divergence(normalise(p), geometric_blend(normalise(p), normalise(q), 0.3)),
        lambda p, q: kl_divergence(normalise(q), arithmetic_blend(normalise(p), normalise(q), 0.3)),
        lambda p, q: gather_logprobs(normalise(p), torch.tensor([0, 1])),
        lambda p, q: tail_logprobs(normalise(p), torch.tensor([[0, 1], [1, 2]])),
    ],
)
def test_gradients_are_right_and_finite_beside_impossible_tokens(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    p, q = draw(2, 2, 5).double().unbind()
    impossible = torch.tensor([[False, False, True, False, True], [False, False, False, True, False]])

    def on_possible(p: Tensor, q: Tensor) -> Tensor:
        return function(p.masked_fill(impossible, -INF), q.masked_fill(impossible, -INF))

    inputs = p.requires_grad_(), q.requires_grad_()
    assert torch.autograd.gradcheck(on_possible, inputs)
    logits = p.detach().masked_fill(impossible, -INF).requires_grad_()
    function(logits, q.detach().masked_fill(impossible, -INF)).sum().backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None and logits.grad.isfinite().all()


def test_geometric_blend_returns_the_ends_untouched_and_drops_zeros_of_either_side_in_between() -> None:
    student, teacher = (
        normalise(torch.tensor([[0.0, 1.0, -INF, 2.0]])),
        normalise(torch.tensor([[1.0, -INF, 0.5, 0.0]])),
    )
    assert torch.equal(geometric_blend(student, teacher, 0.0), student)
    assert torch.equal(geometric_blend(student, teacher, 1.0), teacher)
    between = geometric_blend(student, teacher, 0.5)
    assert between[0].isfinite().tolist() == [True, False, False, True]
    expected = torch.stack([student[0, [0, 3]], teacher[0, [0, 3]]]).mean(0).log_softmax(-1)
    torch.testing.assert_close(between[0, [0, 3]], expected)
    both = geometric_blend(student.expand(3, 4), teacher.expand(3, 4), torch.tensor([0.0, 0.5, 1.0]))
    torch.testing.assert_close(both, torch.cat([student, between, teacher]), rtol=0, atol=0)


def test_arithmetic_blend_keeps_what_either_side_allows_and_returns_the_ends_untouched() -> None:
    p, q = torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]]).log(), torch.tensor([[0.0, 0.25, 0.75], [1.0, 0, 0]]).log()
    assert arithmetic_blend(p, q, 0) is p and arithmetic_blend(p, q, 1.0) is q
    torch.testing.assert_close(arithmetic_blend(p, q, 0.3).exp(), 0.7 * p.exp() + 0.3 * q.exp())


def test_log_linear_is_a_product_of_powers() -> None:
    p, q, r = (normalise(draw(5, 9, seed=seed).double()) for seed in range(3))
    product = p.exp() ** 1.5 * q.exp() ** -0.7 * r.exp() ** 0.4
    found = log_linear((p, q, r), (1.5, -0.7, 0.4))
    torch.testing.assert_close(found.exp(), product / product.sum(-1, keepdim=True))
    torch.testing.assert_close(log_linear((p, q), (0.4, 0.6)), geometric_blend(p, q, 0.6))
    assert torch.equal(log_linear((p, q, r), (0, 1, 0)), q)


def test_log_linear_drops_what_any_part_with_a_weight_forbids() -> None:
    p, q = torch.tensor([0.5, 0.25, 0.25]).log(), torch.tensor([0.0, 0.5, 0.5]).log()
    for weights in ((1.0, 0.5), (1.0, -0.5)):
        assert log_linear((p, q), weights).exp().tolist() == pytest.approx([0, 0.5, 0.5])
    assert torch.equal(log_linear((p, q), (1.0, 0.0)), p)
    parts = [x.clone().requires_grad_() for x in (p, q)]
    log_linear(parts, (1.0, -0.5))[1].backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in parts)


def test_geometric_blend_of_disjoint_rows_has_no_middle() -> None:
    student, teacher = torch.tensor([0.0, -INF]), torch.tensor([-INF, 0.0])
    assert geometric_blend(student, teacher, 0.5).isnan().all()
    assert torch.equal(geometric_blend(student, teacher, 0.0), student)
    assert torch.equal(geometric_blend(student, teacher, 1.0), teacher)


# --- trust_region_blend: numbers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("radius", "blend", "probs", "kl_to_teacher"),
    [
        (0.001, 0.051164, (0.581279, 0.307444, 0.111277), 0.460506),
        (0.01, 0.155731, (0.541302, 0.321153, 0.137544), 0.383313),
        (0.02, 0.215689, (0.517441, 0.327899, 0.154660), 0.339550),
        (0.05, 0.328710, (0.470944, 0.337889, 0.191166), 0.259715),
        (0.6, 1.0, (0.2, 0.3, 0.5), 0.0),
    ],
)
def test_worked_example(radius: float, blend: float, probs: tuple[float, ...], kl_to_teacher: float) -> None:
    result = trust_region_blend(torch.tensor([0.6, 0.3, 0.1]).log(), torch.tensor([0.2, 0.3, 0.5]).log(), radius)
    assert result.blend_B.item() == pytest.approx(blend, abs=1e-6)
    assert result.logprobs_BV.exp().tolist() == pytest.approx(probs, abs=1.1e-6)
    assert result.kl_to_student_B.item() == pytest.approx(min(radius, 0.584996), abs=1e-6)
    assert result.kl_to_teacher_B.item() == pytest.approx(kl_to_teacher, abs=1.1e-6)


@pytest.mark.parametrize("likeness", [0.0, 0.7, 0.999])
@pytest.mark.parametrize("std", [0.1, 1.0, 3.0, 8.0, 20.0])
@pytest.mark.parametrize("vocabulary", [2, 3, 17, 335])
def test_agrees_with_bisection(vocabulary: int, std: float, likeness: float) -> None:
    student, teacher = related_rows(len(RADII) * 6, vocabulary, std, likeness, seed=vocabulary)
    assert_solves(student, teacher, torch.tensor(RADII, dtype=torch.float64).repeat(6))


@pytest.mark.sweeps
@pytest.mark.parametrize("std", [0.1, 3.0, 20.0])
@pytest.mark.parametrize("vocabulary", [32_000, 152_064])
def test_agrees_with_bisection_on_real_vocabularies(vocabulary: int, std: float) -> None:
    radii = torch.tensor([1e-6, 1e-3, 0.05] if vocabulary > 100_000 else RADII, dtype=torch.float64)
    student, teacher = related_rows(len(radii), vocabulary, std, seed=1)
    assert_solves(student, teacher, radii, iterations=50)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_agrees_with_bisection_in_every_type_and_at_any_offset(dtype: torch.dtype) -> None:
    student, teacher = (rows.to(dtype) for rows in related_rows(64, 50, 3.0))
    radii = torch.tensor(RADII, dtype=torch.float64).repeat(8)
    assert_solves(student, teacher, radii)
    assert_solves(student + 5000, teacher - 3000, radii)  # what is left of them in this type
    assert_solves(student.float() + 5000, teacher, radii)


def test_nearly_equal_rows() -> None:
    for radius in RADII:
        assert_solves(*nearly_equal_rows(), radius)


def test_one_confident_side() -> None:
    for radius in RADII:
        assert_solves(*rows_with_one_confident_side(), radius)


@pytest.mark.sweeps
@seeded
@given(
    st.integers(2, 6).flatmap(
        lambda size: st.tuples(
            *(st.lists(st.floats(-30, 30, width=32) | st.just(-INF), min_size=size, max_size=size) for _ in range(2))
        )
    ),
    st.floats(1e-6, 10),
)
def test_any_pair_of_rows(rows: tuple[list[float], list[float]], radius: float) -> None:
    student, teacher = (torch.tensor(row) for row in rows)
    if (student > -INF).any() and (teacher > -INF).any() and not _on_the_edge(student, teacher, radius):
        assert_solves(student.unsqueeze(0), teacher.unsqueeze(0), radius, iterations=60)


def _on_the_edge(student: Tensor, teacher: Tensor, radius: float) -> bool:
    """Radii within rounding of a limit of the path, where the largest feasible blend is not a continuous function."""
    p, q = log64(student), log64(teacher)
    price = -p.masked_fill(q == -INF, -INF).logsumexp(-1)
    edges = torch.stack([price, kl64(q, p), kl64(blend64(p, q, torch.tensor(1 - 1e-7)), p)])
    return bool(((edges - radius).abs() < 1e-9).any())


def test_small_budget_theory() -> None:
    """b* = sqrt(2 eps / s2) + O(eps), and the gain in KL to the teacher is sqrt(2 eps s2) + O(eps)."""
    student, teacher = related_rows(50, 200, 1.0)
    p, q = log64(student), log64(teacher)
    ratio = q - p
    mean = (p.exp() * ratio).sum(-1, keepdim=True)
    variance = (p.exp() * (ratio - mean) ** 2).sum(-1)
    for radius in (1e-3, 1e-4, 1e-5, 1e-6):
        blend = trust_region_blend(student.double(), teacher.double(), radius)
        gain = kl64(p, q) - blend.kl_to_teacher_B
        torch.testing.assert_close(blend.blend_B, (2 * radius / variance).sqrt(), rtol=3 * radius**0.5, atol=0)
        torch.testing.assert_close(gain, (2 * radius * variance).sqrt(), rtol=3 * radius**0.5, atol=0)


def test_a_larger_radius_never_takes_you_further_from_the_teacher() -> None:
    student, teacher = related_rows(100, 40, 3.0)
    path = [trust_region_blend(student, teacher, radius) for radius in torch.logspace(-6, 1.5, 40).tolist()]
    for nearer, further in pairwise(path):
        assert (further.blend_B >= nearer.blend_B * (1 - 1e-4)).all()
        assert (further.kl_to_teacher_B <= nearer.kl_to_teacher_B + 1e-6).all()
        assert (further.kl_to_student_B >= nearer.kl_to_student_B - 1e-6).all()


def test_the_checks_above_notice_a_bracket_that_went_stale() -> None:
    """Three halvings end feasible: a test of feasibility alone would pass them, the test of the blend does not."""
    p, q = (log64(rows) for rows in related_rows(50, 40, 3.0))
    radius = torch.full((50,), 0.05, dtype=torch.float64)
    stale = bisect(p, q, radius, iterations=3)
    assert (kl64(blend64(p, q, stale), p) <= radius).all()
    with pytest.raises(AssertionError, match="blend off by"):
        assert_matches(stale, bisect(p, q, radius))
    assert_matches(bisect(p, q, radius, iterations=40), bisect(p, q, radius))


@pytest.mark.parametrize("blend", [0.35, 0.4, 0.5])
def test_where_the_kl_is_flat_the_blend_is_still_right(blend: float) -> None:
    """Once the teacher's favourite has all the mass, KL(mu_b || p) creeps: 1e-5 of it can be half of the way."""
    p, q = log64(torch.tensor([[0.0, 2.0]])), log64(torch.tensor([[40.0, 0.0]]))
    radius = kl64(blend64(p, q, torch.tensor([blend])), p)
    assert kl64(q, p) < radius * (1 + 1e-4)
    assert trust_region_blend(p, q, radius).blend_B.item() == pytest.approx(blend, rel=BLEND_RELATIVE)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each pass over the vocabulary."""
    calls: list[int] = []
    evaluate = distributions._cumulants
    monkeypatch.setattr(distributions, "_cumulants", lambda *rows: calls.append(1) or evaluate(*rows))
    return calls


def test_few_passes_over_the_vocabulary(passes: list[int]) -> None:
    counts = []
    for seed in range(40):
        for radius in (0.001, 0.01, 0.05):
            passes.clear()
            trust_region_blend(*related_rows(1, 335, 3.0, seed=seed), radius)
            counts.append(len(passes))
    assert max(counts) <= 7
    assert sum(counts) / len(counts) <= 4.5


def test_the_last_number_below_one_is_found_at_once(passes: list[int]) -> None:
    trust_region_blend(torch.tensor([0.0, 1.0, -INF]), torch.tensor([2.0, 0, 0]), 50.0)
    assert len(passes) <= 3


def test_stops_when_no_number_is_left_in_the_bracket(passes: list[int]) -> None:
    """Here the KL moves by more than the tolerance from one float32 blend to the next."""
    student, teacher = draw(2, 20, 3, std=1e5)
    result = trust_region_blend(student, teacher, 0.05)
    assert len(passes) < 45
    assert (kl64(blend64(log64(student), log64(teacher), result.blend_B), log64(student)) <= 0.05 * 1.001).all()


# --- trust_region_blend: limits --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_radius_zero_is_exactly_the_student_and_never_looks_at_the_teacher(dtype: torch.dtype) -> None:
    student = draw(5, 50, std=3.0).to(dtype)
    for teacher in (draw(5, 50, seed=1).to(dtype), student.clone(), torch.full_like(student, math.nan)):
        result = trust_region_blend(student, teacher, 0)
        assert torch.equal(result.logprobs_BV, normalise(student))
        assert (result.blend_B == 0).all()
        assert (result.kl_to_student_B == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_radius_beyond_the_teacher_is_exactly_the_teacher(dtype: torch.dtype) -> None:
    student, teacher = (rows.to(dtype) for rows in related_rows(5, 50, 3.0))
    distance = kl64(log64(teacher), log64(student))
    for radius in (distance * (1 + 1e-9), 1e3, INF):
        result = trust_region_blend(student, teacher, radius)
        assert torch.equal(result.logprobs_BV, normalise(teacher))
        assert (result.blend_B == 1).all()
        assert (result.kl_to_teacher_B == 0).all()
        torch.testing.assert_close(result.kl_to_student_B.double(), distance, rtol=1e-6, atol=0)


def test_equal_rows() -> None:
    student = draw(5, 50, std=3.0)
    for radius in (1e-9, 0.01, 100.0):
        result = trust_region_blend(student, student.clone(), radius)
        assert torch.equal(result.logprobs_BV, normalise(student))
        assert (result.blend_B == 1).all()


NONE = -INF


@pytest.mark.parametrize(
    ("student", "teacher", "radius", "blend", "probs"),
    [
        pytest.param([0, 0, 0], [NONE, 0, 0], 0.4, 0, [1 / 3] * 3, id="price of a forbidden token not covered"),
        pytest.param([0, 0, 0], [NONE, 0, 0], 0.41, 1, [0, 0.5, 0.5], id="price ln 1.5 = 0.405 covered"),
        pytest.param([0, 0, NONE], [0, 0, 0], 0.01, 1, [0.5, 0.5, 0], id="teacher wants more than the student has"),
        pytest.param([0, 0, NONE], [math.log(3), 0, 5], 9.0, 1, [0.75, 0.25, 0], id="teacher inside the student"),
        pytest.param([0, 0, NONE], [NONE, 0, 0], 0.69, 0, [0.5, 0.5, 0], id="overlap in one token, not covered"),
        pytest.param([0, 0, NONE], [NONE, 0, 0], 0.70, 1, [0, 1, 0], id="overlap in one token, ln 2 covered"),
        pytest.param([0, NONE, NONE], [0, 0, 0], 0.01, 1, [1, 0, 0], id="one-hot student cannot move"),
        pytest.param([0, 0, 0], [0, NONE, NONE], 1.0, 0, [1 / 3] * 3, id="one-hot teacher, ln 3 = 1.0986 too far"),
        pytest.param([0, 0, 0], [0, NONE, NONE], 1.1, 1, [1, 0, 0], id="one-hot teacher in reach"),
        pytest.param([0, NONE, NONE], [0, NONE, NONE], 0.01, 1, [1, 0, 0], id="same one-hot"),
        pytest.param([0, NONE, NONE], [NONE, 0, NONE], 100.0, 0, [1, 0, 0], id="different one-hots"),
        pytest.param([0, 0, NONE, NONE], [NONE, NONE, 0, 0], 100.0, 0, [0.5, 0.5, 0, 0], id="disjoint"),
        pytest.param(
            [0, 0, NONE, NONE], [NONE, NONE, 0, 0], 1e30, 0, [0.5, 0.5, 0, 0], id="disjoint, any finite radius"
        ),
        pytest.param([0, 0, NONE, NONE], [NONE, NONE, 0, 0], INF, 1, [0, 0, 0.5, 0.5], id="disjoint, no limit"),
        pytest.param([0, 0, NONE], [0, 0, 0], INF, 1, [1 / 3] * 3, id="outside the student, no limit"),
    ],
)
def test_impossible_tokens(
    student: list[float], teacher: list[float], radius: float, blend: float, probs: list[float]
) -> None:
    result = trust_region_blend(torch.tensor(student, dtype=torch.float32), torch.tensor(teacher).float(), radius)
    assert result.blend_B.item() == pytest.approx(blend, abs=1e-7)
    assert result.logprobs_BV.exp().tolist() == pytest.approx(probs, abs=1e-6)
    assert (result.logprobs_BV == -INF).tolist() == [prob == 0 for prob in probs]


def test_a_teacher_outside_the_student_is_never_quite_reached() -> None:
    """KL(q || p) is infinite, so blend 1 would break the promise of any finite radius."""
    for dtype in (torch.float32, torch.float64):
        result = trust_region_blend(torch.tensor([0.0, 1.0, -INF]).to(dtype), torch.tensor([2.0, 0, 0]).to(dtype), 50.0)
        assert 1 - 1e-7 < result.blend_B.item() < 1
        assert result.kl_to_student_B < 50
        hardly = trust_region_blend(torch.tensor([0.0, -INF]).to(dtype), torch.tensor([0.0, -90.0]).to(dtype), 0.1)
        assert hardly.blend_B < 1
        assert hardly.logprobs_BV.tolist() == [0, -INF]


def test_an_infinite_radius_reports_an_infinite_kl() -> None:
    result = trust_region_blend(torch.tensor([0.0, -INF]), torch.tensor([0.0, 0.0]), INF)
    assert (result.kl_to_student_B, result.kl_to_teacher_B) == (INF, 0)
    backward = trust_region_blend(torch.tensor([0.0, 0.0]), torch.tensor([0.0, -INF]), 0.1)
    assert (backward.kl_to_student_B, backward.kl_to_teacher_B) == (0, INF)


def test_random_holes_on_both_sides() -> None:
    student, teacher = related_rows(400, 12, 3.0)
    holes = torch.rand(2, 400, 12, generator=torch.Generator().manual_seed(2)) < 0.2
    student, teacher = student.masked_fill(holes[0], -INF), teacher.masked_fill(holes[1], -INF)
    for radius in RADII:
        assert_solves(student, teacher, radius)


def test_rows_do_not_influence_each_other() -> None:
    """One batch of everything at once gives, bit for bit, what each row gives alone."""
    student, teacher = related_rows(12, 30, 3.0)
    student[1], teacher[1] = student[1] * 10 + 5000, teacher[1] * 10 - 3000
    teacher[2] = student[2]
    teacher[3] = student[3] + 1e-4 * draw(30)
    student[4, :10], teacher[4, 20:] = -INF, -INF
    student[5, :15], teacher[5, 15:] = -INF, -INF
    student[6, 1:] = -INF
    teacher[7, 1:] = -INF
    student[8] = math.nan
    teacher[9] = -INF
    student[10] *= 0.01
    radius = torch.tensor([0.01, 0.05, 0.01, 1e-6, 2.0, 1.0, 0.1, 9.0, 0.01, 0.01, 1e-5, 0.0], dtype=torch.float64)
    together = trust_region_blend(student, teacher, radius)
    for row in range(12):
        alone = trust_region_blend(student[row], teacher[row], radius[row])
        for part, expected in zip(alone, together, strict=True):
            torch.testing.assert_close(part, expected[row], rtol=0, atol=0, equal_nan=True)
    sound = [0, 1, 2, 3, 4, 5, 6, 7, 10, 11]
    assert_solves(student[sound], teacher[sound], radius[sound])


def test_rows_solved_in_pieces_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = related_rows(7, 30, 3.0)
    whole = trust_region_blend(student, teacher, 0.01)
    monkeypatch.setattr(distributions, "SOLVE_ENTRIES_CPU", 65)
    for part, expected in zip(trust_region_blend(student, teacher, 0.01), whole, strict=True):
        assert torch.equal(part, expected)


def test_broken_rows_show() -> None:
    """A NaN or an empty row must not turn into a plausible distribution."""
    student = torch.tensor([[math.nan, 0.0], [-INF, -INF], [0.0, 1.0], [0.0, 1.0]])
    teacher = torch.tensor([[0.0, 1.0], [0.0, 1.0], [math.nan, 0.0], [-INF, -INF]])
    for part in trust_region_blend(student, teacher, 0.01):
        assert part.isnan().all()


def test_leading_axes_and_radii_that_broadcast() -> None:
    student, teacher = (rows.reshape(2, 3, 20) for rows in related_rows(6, 20, 2.0))
    radius = torch.tensor([0.001, 0.01, 0.1])
    result = trust_region_blend(student, teacher, radius)
    flat = trust_region_blend(student.reshape(6, 20), teacher.reshape(6, 20), radius.repeat(2))
    for part, expected in zip(result, flat, strict=True):
        assert torch.equal(part.reshape(expected.shape), expected)
    assert result.blend_B.shape == (2, 3)


def test_no_rows() -> None:
    result = trust_region_blend(torch.zeros(0, 5), torch.zeros(0, 5), 0.01)
    assert result.logprobs_BV.shape == (0, 5)
    assert result.blend_B.shape == (0,)


def test_carries_no_gradient() -> None:
    student, teacher = (rows.requires_grad_() for rows in related_rows(2, 5, 1.0))
    assert not trust_region_blend(student, teacher, 0.01).logprobs_BV.requires_grad


@pytest.mark.parametrize("radius", [-0.1, math.nan, torch.tensor([0.1, -0.1]), torch.tensor([math.nan, 0.1])])
def test_refuses_impossible_radii(radius: float | Tensor) -> None:
    with pytest.raises(ConfigurationError, match=r"kl_radius is (-0\.1|nan); .* Use 0 for pure student rollouts"):
        trust_region_blend(torch.zeros(2, 3), torch.zeros(2, 3), radius)


def test_refuses_two_vocabularies() -> None:
    with pytest.raises(VocabularyMismatchError, match=r"\(2, 3\).*\(2, 4\)"):
        trust_region_blend(torch.zeros(2, 3), torch.zeros(2, 4), 0.1)


# --- tail_logprobs, gather_logprobs ----------------------------------------------------------------------------------


def test_tail_is_summed_over_the_complement() -> None:
    logprobs = torch.tensor([[0.0, -40.0, -41.0, -INF], [-0.5, -1.0, -INF, -INF]])
    tail = tail_logprobs(logprobs, torch.tensor([[0, 3], [0, 1]]))
    assert tail[0].item() == pytest.approx(math.log(math.exp(-40) + math.exp(-41)))  # 1 - mass would be 0
    assert tail[1].item() == -INF
    repeated = tail_logprobs(logprobs, torch.tensor([[0, 0, 3], [0, 1, 1]]))
    torch.testing.assert_close(repeated, tail)


def test_an_empty_tail_has_no_gradient_rather_than_nan() -> None:
    logits = torch.tensor([[1.0, 2.0, -INF]], requires_grad=True)
    tail_logprobs(normalise(logits), torch.tensor([[0, 1]])).exp().sum().backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None and (logits.grad == 0).all()


def test_gather_takes_one_token_per_row() -> None:
    logprobs = normalise(draw(2, 3, 5))
    tokens = torch.tensor([[0, 1, 2], [4, 3, 2]])
    expected = [[logprobs[i, j, tokens[i, j]].item() for j in range(3)] for i in range(2)]
    assert gather_logprobs(logprobs, tokens).tolist() == expected


# --- sample ----------------------------------------------------------------------------------------------------------


def sweep(logprobs: Tensor, draws: int) -> Tensor:
    """Tokens for u = 1/2n, 3/2n, ..., which visit every token in proportion to its probability."""
    uniforms = (torch.arange(draws, dtype=torch.float64) + 0.5) / draws
    return sample(logprobs.expand(draws, -1), uniforms)


def test_sample_has_the_right_frequencies() -> None:
    probs = torch.tensor([0.1, 0.0, 0.25, 0.05, 0.6])
    counts = sweep(probs.log(), 2000).bincount(minlength=5)
    assert counts.tolist() == [200, 0, 500, 100, 1200]


@pytest.mark.parametrize("seed", range(4))
def test_sample_counts_stay_within_one_of_their_share(seed: int) -> None:
    logprobs = normalise(draw(300, std=3.0, seed=seed))
    counts = sweep(logprobs, 20_000).bincount(minlength=300)
    assert (counts - 20_000 * logprobs.double().exp()).abs().max() <= 1.01


def test_sample_inverts_the_cumulative_mass_exactly() -> None:
    """Quarters have exact sums: at a boundary the next token begins."""
    logprobs = torch.tensor([0.25, 0.25, 0.5]).log()
    boundary = 0.25
    uniforms = torch.tensor(
        [0.0, math.nextafter(boundary, 0), boundary, 0.5, math.nextafter(1, 0)], dtype=torch.float64
    )
    assert sample(logprobs.expand(5, 3), uniforms).tolist() == [0, 0, 1, 2, 2]


def test_sample_never_returns_an_impossible_token() -> None:
    extremes = torch.tensor(
        [0.0, 5e-324, 1e-300, 1e-17, 0.5, 1 - 1e-16, math.nextafter(1, 0), 1.0], dtype=torch.float64
    )
    generator = torch.Generator().manual_seed(0)
    for seed in range(200):
        logits = draw(40, std=5.0, seed=seed)
        logits[torch.rand(40, generator=generator) < 0.6] = -INF
        logits[:5] = -INF
        logits[-5:] = -INF
        logits[20] = 0.0
        logprobs = normalise(logits)
        uniforms = torch.cat([extremes, torch.rand(40, generator=generator, dtype=torch.float64)])
        tokens = sample(logprobs.expand(len(uniforms), 40), uniforms)
        assert (logprobs[tokens] > -INF).all()


def test_sample_skips_tokens_whose_probability_underflows() -> None:
    logprobs = torch.tensor([-1000.0, 0.0, -1000.0])
    uniforms = torch.tensor([0.0, 0.5, math.nextafter(1, 0)], dtype=torch.float64)
    assert sample(logprobs.expand(3, 3), uniforms).tolist() == [1, 1, 1]


def test_sample_tells_the_tokens_of_a_real_vocabulary_apart() -> None:
    """A float32 sum would blur the boundaries by more than the thousandth of a share that is tried here."""
    vocabulary = 152_064
    logits = torch.zeros(vocabulary)
    logits[-1] = 1.2
    share = (logits[:1] - logits[-1]).exp().double()  # of every token but the last, whose share is 1
    positions = torch.tensor([0, 1, 777, 100_000, 120_001, vocabulary - 2], dtype=torch.float64)
    for place in (0.001, 0.5, 0.999):
        uniforms = (positions + place) * share / ((vocabulary - 1) * share + 1)
        assert sample(logits.expand(len(positions), -1), uniforms).tolist() == positions.tolist()


def test_sample_matches_a_float64_reference_on_a_real_vocabulary() -> None:
    logprobs = normalise(draw(152_064, std=3.0))
    uniforms = torch.rand(24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cumulative = logprobs.double().exp().cumsum(-1)
    expected = torch.searchsorted(cumulative, uniforms * cumulative[-1], right=True)
    # float32 exponentials move a boundary by some 1e-9; none of these draws lies that close to one
    assert torch.equal(sample(logprobs.expand(24, -1), uniforms), expected)


def test_sample_by_blocks_is_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over blocks without mass, single certain tokens, rows without mass or with a NaN, and both ends of the range."""
    rows = draw(200, 1000, std=4.0)
    rows[:40, 100:900] = -INF
    rows[40:60, 1:], rows[60:80, :-1] = -INF, -INF
    rows[80], rows[81, 5] = -INF, math.nan
    uniforms = torch.rand(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    uniforms[::10], uniforms[1::10] = 0.0, math.nextafter(1, 0)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        expected = sample(rows.to(dtype), uniforms)
        with monkeypatch.context() as patch:
            patch.setattr(distributions, "SUMMED_ENTRY_BY_ENTRY", 0)
            assert torch.equal(sample(rows.to(dtype), uniforms), expected)
            assert torch.equal(sample(rows.reshape(2, 100, -1).to(dtype), uniforms.reshape(2, 100)).flatten(), expected)
            assert sample(rows[:0], uniforms[:0]).shape == (0,)


def test_sample_survives_a_cumulative_sum_that_is_not_monotone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parallel sums round each entry on its own: they may rise over an impossible token, fall over a possible one."""
    wobbly = torch.tensor([[1e-17, 0.5, 0.5 + 1e-16, 0.4999999999999999, 1.0, 1.0 + 3e-16]], dtype=torch.float64)
    monkeypatch.setattr(Tensor, "cumsum", lambda self, *args, **kwargs: wobbly.expand(self.shape).clone())
    logprobs = torch.tensor([[-INF, math.log(0.5), -INF, -30.0, math.log(0.5), -INF]])
    uniforms = torch.tensor([0.0, 0.3, 0.5, 0.7, math.nextafter(1, 0), 1.0], dtype=torch.float64)
    tokens = sample(logprobs.expand(6, 6), uniforms)
    assert tokens.tolist() == [1, 1, 4, 4, 4, 4]


def test_sample_needs_no_normalisation() -> None:
    logprobs = normalise(draw(20, 50))
    uniforms = torch.rand(20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = sample(logprobs, uniforms)
    for offset in (-500.0, 1000.0):
        assert torch.equal(sample(logprobs.double() + offset, uniforms), expected)


def test_sample_marks_rows_without_mass() -> None:
    rows = torch.tensor([[-INF, -INF], [math.nan, 0.0], [0.0, -INF]])
    assert sample(rows, torch.full((3,), 0.5, dtype=torch.float64)).tolist() == [NO_TOKEN, NO_TOKEN, 0]


@pytest.mark.sweeps
@seeded
@given(
    st.lists(st.floats(-100, 0, width=32) | st.just(-INF), min_size=1, max_size=30),
    st.floats(0, 1, exclude_max=True),
)
def test_sample_any_row(row: list[float], uniform: float) -> None:
    logprobs = torch.tensor(row)
    token = int(sample(logprobs, torch.tensor(uniform, dtype=torch.float64)))
    if (logprobs == -INF).all():
        assert token == NO_TOKEN
        return
    mass = (logprobs - logprobs.amax()).exp().double()
    assert mass[token] > 0
    assert mass[:token].sum() <= uniform * mass.sum() * (1 + 1e-12)
    assert mass[: token + 1].sum() >= uniform * mass.sum() * (1 - 1e-12)
