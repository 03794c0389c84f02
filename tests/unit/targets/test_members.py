"""The papers' numbers and gradients, beyond the contract that all targets keep."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tutelage.distributions import kl_divergence, normalise
from tutelage.divergences import StudentTopK
from tutelage.schedules import Linear
from tutelage.targets import Bridge, Extrapolated, Proximal, SelfPast
from tutelage.types import DenseTarget


def log(*probs: float) -> Tensor:
    return torch.tensor(probs, dtype=torch.float64).log()


# --- Veto, arXiv 2601.07155 ------------------------------------------------------------------------------------------

TEACHER, STUDENT = log(0.2, 0.3, 0.5), log(0.6, 0.3, 0.1)


def test_bridge_worked_numbers() -> None:
    bridge = Bridge(0.5)(STUDENT, TEACHER)
    expected = torch.tensor([0.324540, 0.344227, 0.331233], dtype=torch.float64)
    torch.testing.assert_close(bridge.exp(), expected, rtol=0, atol=1e-6)
    assert kl_divergence(STUDENT, bridge).item() == pytest.approx(0.207691, abs=1e-6)
    assert kl_divergence(bridge, STUDENT).item() == pytest.approx(0.244602, abs=1e-6)


def test_bridge_rests_at_a_sharper_teacher() -> None:
    """p ∝ q^(1 / (1 - beta)) is its own bridge; at beta = 0.5 that is (.105263, .236842, .657895)."""
    fixed_point = normalise(TEACHER / (1 - 0.5))
    expected = torch.tensor([0.105263, 0.236842, 0.657895], dtype=torch.float64)
    torch.testing.assert_close(fixed_point.exp(), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(Bridge(0.5)(fixed_point, TEACHER), fixed_point)


@pytest.mark.parametrize("beta", [0.3, 0.8, 1.0])
def test_bridge_with_a_uniform_side(beta: float) -> None:
    uniform = log(1 / 3, 1 / 3, 1 / 3)
    torch.testing.assert_close(Bridge(beta)(STUDENT, uniform), normalise(beta * STUDENT))
    torch.testing.assert_close(Bridge(beta)(uniform, TEACHER), TEACHER)


def gradient(student_logits: Tensor, beta: float, *, detached: bool, forward: bool) -> Tensor:
    student_logits = student_logits.clone().requires_grad_()
    student = normalise(student_logits)
    bridge = Bridge(beta)(student.detach() if detached else student, TEACHER)
    (kl_divergence(bridge, student) if forward else kl_divergence(student, bridge)).backward()
    assert student_logits.grad is not None
    return student_logits.grad


def test_bridge_gradients_are_the_papers() -> None:
    """Detached: forward p - Q, reverse E_p[∇ log p · ((1 - beta) log p - log q)]. Through Q: + beta E_Q[∇ log p]."""
    beta, p = 0.4, STUDENT.exp()
    bridge = Bridge(beta)(STUDENT, TEACHER).exp()
    torch.testing.assert_close(gradient(STUDENT, beta, detached=True, forward=True), p - bridge)
    cost = (1 - beta) * STUDENT - TEACHER
    reverse = p * (cost - (p * cost).sum())
    torch.testing.assert_close(gradient(STUDENT, beta, detached=True, forward=False), reverse)
    through = gradient(STUDENT, beta, detached=False, forward=False)
    torch.testing.assert_close(through, reverse + beta * (bridge - p))


@pytest.mark.parametrize("forward", [True, False])
def test_bridge_gradient_through_it_against_finite_differences(forward: bool) -> None:
    beta, width = 0.7, 1e-6

    def loss(logits: Tensor) -> float:
        student = normalise(logits)
        bridge = Bridge(beta, detach=False)(student, TEACHER)
        return float(kl_divergence(bridge, student) if forward else kl_divergence(student, bridge))

    steps = torch.eye(3, dtype=torch.float64) * width
    numeric = torch.tensor([(loss(STUDENT + step) - loss(STUDENT - step)) / (2 * width) for step in steps])
    found = gradient(STUDENT, beta, detached=False, forward=forward)
    torch.testing.assert_close(found, numeric.double(), rtol=1e-6, atol=1e-8)
    assert not torch.allclose(found, gradient(STUDENT, beta, detached=True, forward=forward), atol=1e-3)


def test_bridge_is_exact_on_a_renormalised_support_and_not_with_a_tail() -> None:
    student, teacher = torch.randn(2, 5, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2
    whole = Bridge(0.5)(normalise(student), normalise(teacher))
    ids = student.topk(6).indices
    renormalised = Bridge(0.5)(*StudentTopK(6, "renormalised").events(student, DenseTarget(teacher)))
    torch.testing.assert_close(renormalised, normalise(whole.gather(-1, ids)))
    with_tail = Bridge(0.5)(*StudentTopK(6, "tail").events(student, DenseTarget(teacher)))
    assert (with_tail[:, -1].exp() > 1 - whole.gather(-1, ids).exp().sum(-1)).all(), "the tail counts for too much"


# --- G-OPD, arXiv 2602.12125 -----------------------------------------------------------------------------------------


def test_extrapolated_worked_example() -> None:
    """q = (.5, .3, .2), r = (.2, .3, .5), scale 1.25: Q ∝ q^1.25 r^-.25."""
    teacher, reference = log(0.5, 0.3, 0.2), log(0.2, 0.3, 0.5)
    expected = torch.tensor([q**1.25 * r**-0.25 for q, r in ((0.5, 0.2), (0.3, 0.3), (0.2, 0.5))]).double()
    found = Extrapolated(1.25)(STUDENT, teacher, reference).exp()
    torch.testing.assert_close(found, expected / expected.sum(), rtol=1e-6, atol=0)
    assert found[0] > 0.5 and found[2] < 0.2, "further from the reference than the teacher is"


def test_extrapolated_does_not_depend_on_the_reference_at_scale_one_nor_on_the_scale_for_equal_models() -> None:
    generator = torch.Generator().manual_seed(3)
    for _ in range(3):
        reference = normalise(torch.randn(3, generator=generator, dtype=torch.float64))
        assert torch.equal(Extrapolated(1.0)(STUDENT, TEACHER, reference), TEACHER)
    for scale in (0.0, 0.5, 1.25, 3.0):
        torch.testing.assert_close(Extrapolated(scale)(STUDENT, TEACHER, TEACHER), TEACHER)


def test_extrapolated_has_the_gradient_of_the_papers_cost_at_a_prefix() -> None:
    """E_p[-A] = KL(p || Q) - log Z with A = s log q + (1 - s) log r - log p, and Z does not depend on p."""
    scale, reference = 1.25, log(0.1, 0.7, 0.2)
    logits = STUDENT.clone().requires_grad_()
    student = normalise(logits)
    reward = scale * TEACHER + (1 - scale) * reference - student.detach()
    log_normaliser = (scale * TEACHER + (1 - scale) * reference).logsumexp(-1)
    target = Extrapolated(scale)(student.detach(), TEACHER, reference)
    divergence = kl_divergence(student, target)
    torch.testing.assert_close(divergence - log_normaliser, -(student.exp() * reward).sum())
    divergence.backward()
    assert logits.grad is not None
    sampled_form = -(student.exp() * (reward - (student.exp() * reward).sum())).detach()
    torch.testing.assert_close(logits.grad, sampled_form)


# --- mixtures --------------------------------------------------------------------------------------------------------


def test_past_self_worked_example() -> None:
    """y = (1, 0), p_past = (.6, .4), alpha = .5: (.8, .2). A uniform past smooths labels; a past that is y is y."""
    label = log(1.0, 0.0)
    torch.testing.assert_close(SelfPast(0.5)(log(0.5, 0.5), label, log(0.6, 0.4)).exp(), log(0.8, 0.2).exp())
    torch.testing.assert_close(SelfPast(0.1)(log(0.5, 0.5), label, log(0.5, 0.5)).exp(), log(0.95, 0.05).exp())
    torch.testing.assert_close(SelfPast(0.7)(log(0.5, 0.5), label, label).exp(), label.exp())


def test_past_weight_of_the_paper() -> None:
    """alpha_T (t + 1) / T: of 300 steps the first has alpha_T / T, the last alpha_T."""
    target = SelfPast(Linear(0.8 / 300, 0.8, 299))
    for step in (0, 1, 149, 299):
        assert target.at(step).past_weight == pytest.approx(0.8 * (step + 1) / 300)


def test_proximal_bounds_the_log_ratio() -> None:
    student, teacher = log(0.999999, 1e-6), log(1e-12, 1 - 1e-12)
    target = Proximal(0.5)(student, teacher)
    assert (student - target).max().item() <= math.log(2) + 1e-12
    torch.testing.assert_close(target.exp(), (student.exp() + teacher.exp()) / 2)


@pytest.mark.parametrize("target", [Proximal(0.6), SelfPast(0.6)], ids=repr)
def test_mixtures_are_exact_with_a_tail(target: Proximal | SelfPast) -> None:
    logits = torch.randn(3, 5, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2
    whole = target(*normalise(logits))
    window, ids = StudentTopK(6, "tail"), logits[0].topk(6).indices
    student, teacher = window.events(logits[0], DenseTarget(logits[1]))
    _, reference = window.events(logits[0], DenseTarget(logits[2]))
    found = target(student, teacher, reference)
    torch.testing.assert_close(found[:, :-1], whole.gather(-1, ids))
    torch.testing.assert_close(found[:, -1].exp(), 1 - whole.gather(-1, ids).exp().sum(-1))


# --- TOP-D, arXiv 2607.04751 -----------------------------------------------------------------------------------------


def test_a_nearer_target_bounds_what_a_token_is_worth() -> None:
    """log(alpha q / p + 1 - alpha) of single tokens, its floors, and bounds from both sides."""
    ratios = torch.tensor([0.0, 0.5, 1.0, 2.0, 10.0]).double()
    student = torch.full((5,), -3.0, dtype=torch.float64)
    worth = Proximal(0.2)(student, student + ratios.log()) - student
    torch.testing.assert_close(worth, torch.tensor([-0.2231, -0.1054, 0, 0.1823, 1.0296]).double(), atol=5e-5, rtol=0)
    assert bool((worth <= ratios.log().clamp_min(0) + 1e-12).all() and (worth >= 0.2 * ratios.log() - 1e-12).all())
    some = torch.tensor([-0.1, -1.0, -3.0]).double()
    for weight, floor in ((0.1, -0.10536), (0.2, -0.22314), (0.3, -0.35667)):
        far = Proximal(weight)(some, torch.full_like(some, -80.0)) - some
        torch.testing.assert_close(far, torch.full_like(some, floor), atol=5e-6, rtol=0)
    assert torch.equal(Proximal(1.0)(some, some - 2), some - 2)


def test_its_mean_is_never_above_0_and_its_gradient_that_of_the_mixture() -> None:
    p, q = log(0.5, 0.3, 0.2), log(0.7, 0.2, 0.1)
    assert float((p.exp() * (Proximal(0.2)(p, q) - p)).sum()) < 0
    assert float((p.exp() * (Proximal(0.2)(p, p) - p)).sum()) == pytest.approx(0, abs=1e-15)
    logits = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    student = normalise(logits)
    kl_divergence(student, Proximal(0.2)(student.detach(), log(0.9, 0.1))).backward()
    torch.testing.assert_close(logits.grad, torch.tensor([-0.0807, 0.0807]).double(), atol=5e-5, rtol=0)
    # With a student that learns inside the mixture, too, it would be five times as small: that is why it is detached.
    logits.grad = None
    kl_divergence(normalise(logits), Proximal(0.2)(normalise(logits), log(0.9, 0.1))).backward()
    torch.testing.assert_close(logits.grad, torch.tensor([-0.0150, 0.0150]).double(), atol=5e-5, rtol=0)


def test_a_geometric_anchor_is_the_extrapolated_target_below_1() -> None:
    """SR-OPSD's q^alpha r^(1 - alpha), arXiv 2608.09745."""
    teacher, reference = log(0.7, 0.2, 0.1), log(0.2, 0.5, 0.3)
    worked = {
        0.5: (0.4333, 0.3662, 0.2006),
        0.9: (0.6512, 0.2311, 0.1177),
        0.95: (0.6761, 0.2153, 0.1086),
        0.0: (0.2, 0.5, 0.3),
    }
    for scale, expected in worked.items():
        found = Extrapolated(scale)(STUDENT, teacher, reference).exp()
        torch.testing.assert_close(found, torch.tensor(expected).double(), atol=6e-5, rtol=0)
