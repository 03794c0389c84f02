"""Numbers of the papers, and what one member says about another."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tutelage.distributions import normalise, tail_logprobs
from tutelage.divergences import (
    GENERATORS,
    AlphaDivergence,
    Balanced,
    Divergence,
    EntropyAware,
    FDivergence,
    ForwardKL,
    JensenShannon,
    NormalisedKD,
    ReverseKL,
    Sinkhorn,
    SkewForwardKL,
    SkewReverseKL,
    StudentTopK,
    TeacherTopK,
    TotalVariation,
    UnionTopK,
    f_divergence,
    forward_kl,
    jsd,
    reverse_kl,
    skew_forward_kl,
    skew_reverse_kl,
    total_variation,
)
from tutelage.errors import ConfigurationError, ZeroMassError
from tutelage.types import DenseTarget, SparseTarget

INF = math.inf

# The pair that arXiv 2302.08215's table is worked out for: the target, and the student.
TARGET, STUDENT = torch.tensor([0.2, 0.3, 0.5]).double(), torch.tensor([0.6, 0.3, 0.1]).double()


def between(divergence: Divergence, student: Tensor = STUDENT, target: Tensor = TARGET) -> float:
    return float(divergence.between(student.log(), target.log()))


def pair(shape: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor]:
    student, target = 2 * torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return student, target


def gradient(divergence: Divergence, student_logits: Tensor, target_logits: Tensor) -> Tensor:
    leaf = student_logits.detach().clone().requires_grad_()
    divergence(leaf, target_logits).sum().backward()
    assert leaf.grad is not None
    return leaf.grad


@pytest.mark.parametrize(
    ("generator", "expected"),
    [
        ("forward_kl", 0.584996),
        ("reverse_kl", 0.498224),
        ("total_variation", 0.4),
        ("jensen_shannon", 0.250201),
        ("chi2_forward", 1.866667),
        ("chi2_reverse", 1.12),
        ("squared_hellinger", 2 - 2 * (math.sqrt(0.12) + 0.3 + math.sqrt(0.05))),
    ],
)
def test_f_divergences_of_the_table(generator: str, expected: float) -> None:
    assert between(FDivergence(generator=generator)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("generator", GENERATORS)
def test_the_ends_of_a_generator_are_its_limits(generator: str) -> None:
    """q f(0) and p f'(inf), against a student and a target that have almost nothing there."""
    member = FDivergence(generator=generator)
    nothing, little = torch.tensor([0.0, 1.0]).double(), torch.tensor([1e-12, 1 - 1e-12]).double()
    other = torch.tensor([0.5, 0.5]).double()
    for sides in ((lambda x: (x, other)), (lambda x: (other, x))):
        exact, close = (between(member, *sides(x)) for x in (nothing, little))
        assert (exact == INF and close > 1) or exact == pytest.approx(close, abs=1e-4)


def test_gradient_of_jensen_shannon() -> None:
    leaf = STUDENT.log().requires_grad_()
    f_divergence(leaf, TARGET.log()).backward()
    expected = torch.tensor([0.163228, -0.040025, -0.123203]).double()
    torch.testing.assert_close(leaf.grad, expected, atol=1e-6, rtol=0)


def test_far_tails_do_not_overflow() -> None:
    """q f(p / q) would be 1e-44 · inf in float32."""
    student, target = torch.tensor([0.0, 0.0]), torch.tensor([0.0, -100.0])
    assert f_divergence(student, target, generator="reverse_kl").item() == pytest.approx(50 - math.log(2), rel=1e-5)
    assert f_divergence(student, target).isfinite() and jsd(student, target).isfinite()


@pytest.mark.parametrize(("share", "expected"), [(0.1, 0.050030), (0.5, 0.125101), (0.9, 0.044421)])
def test_generalised_jensen_shannon_of_gkd(share: float, expected: float) -> None:
    assert jsd(STUDENT.log(), TARGET.log(), target_share=share).item() == pytest.approx(expected, abs=1e-6)


def test_the_ends_of_jensen_shannon_are_the_two_kls() -> None:
    student, target = pair((5, 9))
    assert torch.equal(jsd(student, target, target_share=0.0), forward_kl(student, target))
    assert torch.equal(jsd(student, target, target_share=1.0), reverse_kl(student, target))
    near = 1e-8
    torch.testing.assert_close(
        jsd(student, target, target_share=near) / near, forward_kl(student, target), rtol=1e-3, atol=1e-4
    )
    torch.testing.assert_close(
        jsd(student, target, target_share=1 - near) / near, reverse_kl(student, target), rtol=1e-3, atol=1e-4
    )
    assert (jsd(student, target) <= math.log(2)).all()
    torch.testing.assert_close(jsd(student, target), jsd(target, student))
    torch.testing.assert_close(2 * jsd(student, target), f_divergence(student, target))


def test_alpha_runs_from_forward_to_reverse_kl() -> None:
    student, target = pair((5, 9))
    for order, kl in ((0.0, forward_kl), (1.0, reverse_kl)):
        torch.testing.assert_close(AlphaDivergence(order=order, support="full")(student, target), kl(student, target))
        near = AlphaDivergence(order=order + 1e-5, support="full")(student, target)
        torch.testing.assert_close(near, kl(student, target), rtol=1e-3, atol=1e-4)
    assert between(AlphaDivergence(order=2.0)) == pytest.approx(1.12 / 2)
    assert between(AlphaDivergence(order=-1.0)) == pytest.approx(1.866667 / 2, abs=1e-6)
    assert between(AlphaDivergence()) == pytest.approx(2 * between(FDivergence(generator="squared_hellinger")))


def test_skew_kl_is_bounded_and_starts_at_the_kl() -> None:
    student, target = pair((5, 9))
    torch.testing.assert_close(skew_forward_kl(student, target, skew=0.0), forward_kl(student, target))
    torch.testing.assert_close(skew_reverse_kl(student, target, skew=0.0), reverse_kl(student, target))
    p, q = torch.tensor([1.0, 0.0]).double().log(), torch.tensor([0.0, 1.0]).double().log()
    for member in (SkewForwardKL(skew=0.1), SkewReverseKL(skew=0.1)):
        assert float(member.between(p, q)) == pytest.approx(-math.log(0.1))
    mixed = 0.1 * TARGET + 0.9 * STUDENT
    assert between(SkewForwardKL(skew=0.1)) == pytest.approx(float((TARGET * (TARGET / mixed).log()).sum()))
    mixed = 0.1 * STUDENT + 0.9 * TARGET
    assert between(SkewReverseKL(skew=0.1)) == pytest.approx(float((STUDENT * (STUDENT / mixed).log()).sum()))


def test_total_variation_is_symmetric_and_the_pinsker_bound_holds() -> None:
    student, target = pair((20, 9))
    found = total_variation(student, target)
    torch.testing.assert_close(found, total_variation(target, student))
    torch.testing.assert_close(found, (student.softmax(-1) - target.softmax(-1)).abs().sum(-1) / 2)
    assert (found <= 1).all() and (found <= (reverse_kl(student, target) / 2).sqrt()).all()


def test_balanced_numbers_and_ends() -> None:
    assert between(Balanced(sharpness=0.0)) == pytest.approx(0.541610, abs=1e-6)
    weight = 1 / (1 + math.exp(-(1.029653 - 0.897946)))
    assert between(Balanced()) == pytest.approx(weight * 0.584996 + (1 - weight) * 0.498224, abs=1e-6)
    # Roles exchanged, the gap of the entropies changes its sign, and the value stays.
    assert between(Balanced(), TARGET, STUDENT) == pytest.approx(between(Balanced()))
    student, target = pair((4, 9))
    for share, member in ((1.0, ForwardKL(support="full")), (0.0, ReverseKL(support="full"))):
        found = Balanced(forward_share=share, support="full")(student, target)
        assert torch.equal(found, member(student, target))


def test_the_balance_is_not_differentiated() -> None:
    student, target = pair((9,))
    p, q = student.softmax(-1), target.softmax(-1)
    gap = float(-(q * q.log()).sum() + (p * p.log()).sum())
    frozen = Balanced(forward_share=1 / (1 + math.exp(-2 * gap)), sharpness=0.0, support="full")
    moving = Balanced(sharpness=2.0, support="full")
    torch.testing.assert_close(gradient(moving, student, target), gradient(frozen, student, target))


# --- EOPD ------------------------------------------------------------------------------------------------------------

Q, P = torch.tensor([0.5, 0.25, 0.15, 0.1]).double(), torch.tensor([0.4, 0.3, 0.2, 0.1]).double()


def test_entropy_aware_worked_example() -> None:
    forward = between(EntropyAware(forward_top_k=2), P, Q) - between(ReverseKL(), P, Q)
    assert forward == pytest.approx(0.375671, abs=1e-6)
    assert forward == pytest.approx(0.018996 + 0.356675, abs=2e-6)
    entropy = 1.207974
    for threshold, is_open in ((entropy - 1e-5, True), (entropy + 1e-5, False)):
        found = between(EntropyAware(forward_top_k=2, entropy_threshold=threshold), P, Q)
        assert found == pytest.approx(between(ReverseKL(), P, Q) + is_open * forward)


def test_entropy_aware_limits() -> None:
    student, target = pair((6, 9))
    reverse, forward = reverse_kl(student, target), forward_kl(student, target)
    for closed in (EntropyAware(entropy_threshold=INF), EntropyAware(forward_weight=0.0)):
        torch.testing.assert_close(closed(student, target), reverse)
    open_everywhere = EntropyAware(entropy_threshold=-1.0, forward_weight=0.7, forward_top_k=99)
    torch.testing.assert_close(open_everywhere(student, target), reverse + 0.7 * forward)
    coarse = EntropyAware(entropy_threshold=1.0, support="student_top_k", top_k=3)
    exact = EntropyAware(entropy_threshold=1.0)
    is_open = [divergence(student, target) > reverse + 1e-9 for divergence in (coarse, exact)]
    assert not (is_open[0] & ~is_open[1]).any(), "a merged tail can only close the gate"


def test_entropy_aware_moves_mass_into_the_targets_top_k() -> None:
    """The stationary mass P on S solves log(P (1 - m) / (m (1 - P))) = weight / P, which is above the target's m."""
    m, weight = float(Q[:2].sum()), 1.0
    low, high = m, 1 - 1e-12
    for _ in range(100):
        middle = (low + high) / 2
        excess = math.log(middle * (1 - m) / (m * (1 - middle))) - weight / middle
        low, high = (low, middle) if excess > 0 else (middle, high)
    stationary = torch.cat([Q[:2] * low / m, Q[2:] * (1 - low) / (1 - m)])
    found = gradient(EntropyAware(forward_top_k=2, forward_weight=weight), stationary.log(), Q.log())
    torch.testing.assert_close(found, torch.zeros(4).double(), atol=1e-9, rtol=0)
    assert low > m and gradient(EntropyAware(forward_top_k=2), Q.log(), Q.log()).abs().max() > 0.01


# --- Sinkhorn --------------------------------------------------------------------------------------------------------


def test_sinkhorn_worked_example() -> None:
    student, target = torch.tensor([[0.6, 0.4], [0.3, 0.7]]).double(), torch.tensor([[0.5, 0.5], [0.2, 0.8]]).double()
    plain = Sinkhorn(transport_weight=1.0, forward_weight=0.0, temperature=1.0)
    found = plain.between(student.log(), target.log())
    assert found.sum().item() == pytest.approx(0.412664, abs=1e-6)
    plan = torch.tensor([[0.974192, 0.012504], [0.025808, 0.987496]]).double()
    cost = torch.tensor([[0.2, 0.8], [0.4, 0.2]]).double()
    torch.testing.assert_close(found, (plan * cost).sum(1), atol=1e-6, rtol=0)
    # Alone, a token has nowhere else to go.
    assert plain.between(student[0].log(), target[0].log()).item() == pytest.approx(0.2)
    blurred = Sinkhorn(transport_weight=1.0, forward_weight=0.0, temperature=1.0, epsilon=1e9)
    assert blurred.between(student.log(), target.log()).sum().item() == pytest.approx(2 * cost.mean().item())


def test_transport_ignores_the_pairing_and_the_forward_kl_does_not() -> None:
    student, target = pair((4, 6))
    transport = Sinkhorn(transport_weight=1.0, forward_weight=0.0, epsilon=0.01)
    order = torch.tensor([2, 0, 3, 1])
    together = transport(student, target).sum()
    torch.testing.assert_close(transport(student[order], target).sum(), together)
    assert transport(student[order], student).sum() < 1e-6
    whole = Sinkhorn()
    assert whole(student[order], student).sum() > 0.1
    torch.testing.assert_close(
        whole(student, target),
        0.001 * Sinkhorn(transport_weight=1.0, forward_weight=0.0)(student, target) + forward_kl(student, target),
    )


# --- NKD -------------------------------------------------------------------------------------------------------------


def test_normalised_worked_example() -> None:
    target, student = torch.tensor([0.7, 0.2, 0.1]).double(), torch.tensor([0.5, 0.3, 0.2]).double()
    of_choice = between(NormalisedKD(others_weight=0.0), student, target)
    assert of_choice == pytest.approx(0.485203, abs=1e-6)
    assert between(NormalisedKD(), student, target) - of_choice == pytest.approx(0.968971, abs=1e-6)
    of_others = gradient(NormalisedKD(support="full"), student.log(), target.log()) - gradient(
        NormalisedKD(support="full", others_weight=0.0), student.log(), target.log()
    )
    assert of_others[0].abs() < 1e-12, "the rest does not know of the favourite"
    same_others = torch.tensor([0.4, 0.4, 0.2]).double()
    least = between(NormalisedKD(), same_others, target) - between(NormalisedKD(others_weight=0.0), same_others, target)
    entropy = -sum(share * math.log(share) for share in (2 / 3, 1 / 3))
    assert least == pytest.approx(1.5 * entropy)


def test_normalised_with_one_other_event_or_none() -> None:
    only = torch.tensor([[0.0], [0.0]])
    assert NormalisedKD().between(only, only).tolist() == [0, 0]
    two = torch.tensor([0.3, 0.7]).double()
    assert between(NormalisedKD(), two, torch.tensor([0.9, 0.1]).double()) == pytest.approx(-0.9 * math.log(0.3))


# --- supports --------------------------------------------------------------------------------------------------------


def test_whose_tokens_a_support_looks_at() -> None:
    student, target = torch.tensor([0.5, 0.3, 0.15, 0.05]).double(), torch.tensor([0.4, 0.1, 0.3, 0.2]).double()

    def kl(kept: list[int]) -> float:
        p, q = ([*x[kept].tolist(), 1 - float(x[kept].sum())] for x in (student, target))
        return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 1e-12)

    for support, kept in ((StudentTopK(2), [0, 1]), (TeacherTopK(2), [0, 2]), (UnionTopK(2), [0, 1, 2])):
        found = reverse_kl(student.log(), target.log(), support)
        assert found.item() == pytest.approx(kl(kept)), support
    # Repeats count once: a union of equal supports is that support.
    for rest in ("tail", "renormalised", "truncated"):
        torch.testing.assert_close(
            reverse_kl(student.log(), student.flip(0).log().flip(0), UnionTopK(2, rest)),
            reverse_kl(student.log(), student.log(), StudentTopK(2, rest)),
        )


def test_supports_and_the_whole_vocabulary() -> None:
    student, target = pair((30, 8))
    for support in (TeacherTopK, UnionTopK):
        full = reverse_kl(student, target)
        assert (reverse_kl(student, target, support(3)) <= full + 1e-12).all()
        for rest in ("tail", "renormalised", "truncated"):
            torch.testing.assert_close(reverse_kl(student, target, support(8, rest)), full)
    narrow, wide = (reverse_kl(student, target, support(2)) for support in (StudentTopK, UnionTopK))
    assert (narrow <= wide + 1e-12).all(), "splitting an event cannot lower a KL"


@pytest.mark.parametrize("rest", ["tail", "renormalised", "truncated"])
@pytest.mark.parametrize("k", [2, 4])
def test_the_teachers_support_on_a_record_is_that_of_its_logits(k: int, rest: str) -> None:
    student, teacher = torch.randn(2, 5, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logprobs = normalise(teacher)
    top = logprobs.topk(4)
    record = SparseTarget(top.indices.int(), top.values, tail_logprobs(logprobs, top.indices), whose="teacher")
    support = TeacherTopK(k, rest)
    for found, expected in zip(
        support.events(student, record), support.events(student, DenseTarget(teacher)), strict=True
    ):
        torch.testing.assert_close(found, expected)
    with pytest.raises(ConfigurationError, match="known on a top-k support only"):
        support.events(student, SparseTarget(top.indices, top.values, record.tail_logprobs))


def test_only_the_students_support_can_be_read_off_a_record() -> None:
    student = torch.randn(3, 9)
    record = SparseTarget(student.topk(4).indices, student.log_softmax(-1).topk(4).values, torch.full((3,), -1.0))
    for support, name in ((TeacherTopK(2), "teacher_top_k"), (UnionTopK(2), "union_top_k")):
        with pytest.raises(ConfigurationError, match=f"divergence.support is '{name}', but the target is known"):
            reverse_kl(student, record, support)


def test_zero_mass_names_the_support() -> None:
    student, target = torch.zeros(4), torch.tensor([3.0, 2.0, 1.0, 0.0])
    student[:2] = -INF
    with pytest.raises(ZeroMassError, match="student has no mass at all on the teacher's top-2"):
        reverse_kl(student, target, TeacherTopK(2, "renormalised"))


def test_functions_and_members_agree() -> None:
    student, target = pair((3, 9))
    for function, member in (
        (forward_kl, ForwardKL),
        (jsd, JensenShannon),
        (skew_forward_kl, SkewForwardKL),
        (skew_reverse_kl, SkewReverseKL),
        (total_variation, TotalVariation),
        (f_divergence, FDivergence),
    ):
        seen = function(student, target, TeacherTopK(4, "renormalised"))
        assert torch.equal(seen, member(support="teacher_top_k", top_k=4, rest="renormalised")(student, target))
