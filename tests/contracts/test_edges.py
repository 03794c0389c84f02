"""At zero and at infinity: what every divergence, weighting and target does where a side has no mass on some tokens.

A value is what the formula tends to, or infinite where that is; never NaN. A gradient is finite, also beside an
infinite value, so that a token which is left out of a loss cannot spoil those which are not.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.contracts.test_divergences import MEMBERS, ON_SAMPLED, SUPPORTS, WITH_FROZEN_WEIGHT
from tests.contracts.test_targets import MEMBERS as TARGETS
from tests.contracts.test_weightings import MEMBERS as WEIGHTINGS
from tests.support.rollouts import make_rollouts
from tutelage.distributions import normalise
from tutelage.divergences import (
    AlphaDivergence,
    Balanced,
    Divergence,
    EntropyAware,
    NormalisedKD,
    Sinkhorn,
)
from tutelage.errors import ZeroMassError
from tutelage.losses import TokenFacts, TokenLoss
from tutelage.targets import TargetRule
from tutelage.types import Batch, DenseTarget
from tutelage.weighting import Weighting

INF = math.inf
NOT = -INF
# Stands for what is impossible where a limit is looked for: e^-600 is no number of float32, but one of float64.
NEARLY_NOT = -600.0

# Weights that are 0, and gates that are shut: what they silence must not come back as 0 · inf.
SILENCED = [
    EntropyAware(forward_weight=0.0, entropy_threshold=-1.0),
    EntropyAware(entropy_threshold=INF),
    NormalisedKD(others_weight=0.0),
    Balanced(sharpness=1000.0),
    Balanced(forward_share=0.0),
    Sinkhorn(transport_weight=0.0),
    AlphaDivergence(order=1e-6),
    AlphaDivergence(order=1 - 1e-6),
    AlphaDivergence(order=-3.0),
]

# Student and target logits over 7 tokens.
ROWS: dict[str, tuple[list[float], list[float]]] = {
    "student forbids": ([0.0, NOT, 1.0, 0.5, NOT, 0.2, -1.0], [0.0, 3.0, 3.1, -1.0, 0.3, 0.7, 0.0]),
    "target forbids": ([0.0, 3.0, 3.1, -1.0, 0.3, 0.7, 0.0], [0.0, NOT, 1.0, 0.5, NOT, 0.2, -1.0]),
    "both forbid the same": ([0.0, NOT, 1.0, 0.5, NOT, 0.2, -1.0], [1.0, NOT, 0.0, 0.1, NOT, 0.2, 0.3]),
    "each forbids other tokens": ([NOT, 0.3, 1.0, 0.5, 0.1, 0.2, NOT], [1.0, NOT, 0.0, 0.1, 0.7, NOT, 0.3]),
    "nothing in common": ([0.1, 0.2, 0.3, NOT, NOT, NOT, NOT], [NOT, NOT, NOT, 0.3, 0.1, 0.2, 0.0]),
    "both certain of the same": ([NOT, 2.0, NOT, NOT, NOT, NOT, NOT], [NOT, 1.0, NOT, NOT, NOT, NOT, NOT]),
    "certain of different tokens": ([NOT, 2.0, NOT, NOT, NOT, NOT, NOT], [NOT, NOT, NOT, 1.0, NOT, NOT, NOT]),
    "student certain": ([NOT, 2.0, NOT, NOT, NOT, NOT, NOT], [0.0, 3.0, 3.1, -1.0, 0.3, 0.7, 0.0]),
    "target certain": ([0.0, 3.0, 3.1, -1.0, 0.3, 0.7, 0.0], [NOT, 2.0, NOT, NOT, NOT, NOT, NOT]),
    "equal": ([0.0, 3.0, 3.1, -1.0, 0.3, 0.7, 0.0], [0.0, 3.0, 3.1, -1.0, 0.3, 0.7, 0.0]),
    "far student": ([0.0, -95.0, -60.0, -200.0, 1.0, -110.0, -3.0], [0.0, 1.0, 0.3, -1.0, 0.5, 0.1, 0.2]),
    "far target": ([0.0, 1.0, 0.3, -1.0, 0.5, 0.1, 0.2], [0.0, -95.0, -60.0, -200.0, 1.0, -110.0, -3.0]),
    "student nearly certain": ([0.0, -40.0, -40.0, -41.0, -50.0, -45.0, -44.0], [0.0, 1.0, 0.3, -1.0, 0.5, 0.1, 0.2]),
}

every_type = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def seen(member: Divergence) -> list[Divergence]:
    supports = SUPPORTS[:1] if isinstance(member, Sinkhorn) else SUPPORTS
    return [replace(member, **support) for support in supports]  # type: ignore[arg-type]


def found(divergence: Divergence, student: Tensor, target: Tensor) -> tuple[Tensor, Tensor] | None:
    """Value and gradient on the logits; None where the support itself refuses the rows."""
    leaf = student.clone().requires_grad_()
    try:
        value = divergence(leaf, target)
    except ZeroMassError:
        assert divergence.rest == "renormalised"
        return None
    value.sum().backward()
    assert leaf.grad is not None
    return value.detach(), leaf.grad


@pytest.mark.sweeps
@pytest.mark.parametrize("member", MEMBERS + WITH_FROZEN_WEIGHT + SILENCED, ids=repr)
@every_type
def test_no_value_is_nan_and_every_gradient_is_finite(member: Divergence, dtype: torch.dtype) -> None:
    for divergence in seen(member):
        for name, (student, target) in ROWS.items():
            both = found(divergence, torch.tensor([student], dtype=dtype), torch.tensor([target], dtype=dtype))
            if both is None:
                continue
            value, gradient = both
            assert not value.isnan().any() and (value > NOT).all(), (name, divergence)
            assert gradient.isfinite().all(), (name, divergence)


@pytest.mark.parametrize("member", MEMBERS + SILENCED, ids=repr)
def test_a_value_is_its_formulas_limit(member: Divergence) -> None:
    """Tokens that become impossible, by way of ones that nearly are: a value grows without bound, or comes near."""
    if isinstance(member, Balanced):
        return  # its weight depends on the entropies alone, so that a small share of an infinite KL stays infinite
    if isinstance(member, AlphaDivergence) and 0 < member.order * (1 - member.order) < 1e-3:
        return  # its limit is reached beyond what a float64 holds
    divergence = replace(member, support="full")
    for name, rows in ROWS.items():
        # Certain of one token there is no distribution of the others; normalised counts none.
        if name.startswith("far") or (isinstance(member, NormalisedKD) and "certain" in name):
            continue
        exact = found(divergence, *(torch.tensor([row]).double() for row in rows))
        near = found(divergence, *(torch.tensor([row]).double().clamp_min(NEARLY_NOT) for row in rows))
        assert exact is not None and near is not None
        if exact[0].item() == INF:
            assert near[0].item() > 20, (name, divergence)
        else:
            torch.testing.assert_close(near[0], exact[0], rtol=1e-3, atol=1e-6, msg=f"{name}, {divergence}")


@pytest.mark.parametrize("member", [*ON_SAMPLED, *(replace(ON_SAMPLED[3], outliers=o) for o in ("scalar",))], ids=repr)
@every_type
def test_sampled_tokens_at_the_edges(member: TokenLoss, dtype: torch.dtype) -> None:
    """Every token that one of the two may draw, under a mixture of both."""
    for name, rows in ROWS.items():
        leaf, target = (torch.tensor([row], dtype=dtype) for row in rows)
        leaf.requires_grad_()
        p, q = normalise(leaf)[0], normalise(target)[0]
        mu = torch.logaddexp(p.detach(), q) - math.log(2)
        drawn = mu > NOT
        for is_teachers in (False, True):
            window, events = member.window, (None, None)
            if window is not None:
                rows_nV = (leaf.expand(len(p), -1)[drawn], target.expand(len(p), -1)[drawn])
                events = window.events(rows_nV[0], DenseTarget(rows_nV[1]))
            facts = TokenFacts(
                p[drawn].detach(),
                mu[drawn],
                q[drawn],
                q[drawn] - p[drawn].detach() if member.window is not None else torch.ones_like(q[drawn]),
                torch.full((int(drawn.sum()),), 0.5),
                torch.full((int(drawn.sum()),), is_teachers),
                *events,
                reference_logprobs=q[drawn],
                is_inside=torch.isin(drawn.nonzero()[:, 0], q.topk(min(4, len(q))).indices),
            )
            values = member.on_tokens(p[drawn], facts)
            assert not values.isnan().any(), (name, is_teachers)
            (gradient,) = torch.autograd.grad(values.sum(), leaf, retain_graph=True, allow_unused=True)
            assert gradient is None or gradient.isfinite().all(), (name, is_teachers)


@pytest.mark.parametrize("target", TARGETS, ids=repr)
def test_a_target_exists_where_its_models_share_a_token(target: TargetRule) -> None:
    for name, (student, teacher) in ROWS.items():
        leaf, q = torch.tensor([student]).requires_grad_(), normalise(torch.tensor([teacher]))
        for reference in (q, normalise(leaf.detach())):
            wanted = target(normalise(leaf), q, reference)
            shared = ((leaf > NOT) & (q > NOT)).any()
            assert wanted.isfinite().any() or not shared, (name, target)
            assert not (wanted.isnan().any() and shared), (name, target)
            if wanted.requires_grad and shared:
                (gradient,) = torch.autograd.grad(wanted[wanted.isfinite()].sum(), leaf)
                assert gradient.isfinite().all(), (name, target)


@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=repr)
def test_weights_are_finite_where_the_teacher_forbids(weighting: Weighting) -> None:
    rollouts = make_rollouts()
    for rollout in rollouts[:2]:
        assert rollout.teacher.support_logprobs_TK is not None and rollout.teacher.tail_logprobs_T is not None
        rollout.teacher.support_logprobs_TK[:, 1:] = NOT
        rollout.teacher.tail_logprobs_T[:] = NOT
        rollout.teacher_logprobs[:] = NOT
    records = Batch(rollouts)
    weights = weighting(records, torch.full((records.num_tokens,), 0.5).double())
    assert weights.isfinite().all() and (weights >= 0).all()


# --- single numbers ---------------------------------------------------------------------------------------------------


def test_weights_of_nothing_silence_what_is_infinite() -> None:
    """The student forbids a token of the target."""
    gate = EntropyAware(forward_weight=0.0, entropy_threshold=-1.0)
    value = gate(torch.tensor([0.0, NOT, 1.0]), torch.tensor([0.0, 3.0, 3.1]))
    assert value.item() == pytest.approx(0.9193, abs=5e-5)
    choice = NormalisedKD(support="full", others_weight=0.0)
    value = choice(torch.tensor([NOT, 0.0, 1.0]), torch.tensor([0.0, 0.5, 1.0]))
    assert value.item() == pytest.approx(0.1587, abs=5e-5)


@pytest.mark.parametrize("threshold", [-1.0, INF])
def test_a_target_without_mass_on_the_support_is_infinitely_far_and_teaches_nothing(threshold: float) -> None:
    member = EntropyAware(support="student_top_k", top_k=2, rest="truncated", entropy_threshold=threshold)
    leaf = torch.tensor([3.0, 2.0, 0.0, -1.0]).requires_grad_()
    value = member(leaf, torch.tensor([NOT, NOT, 0.0, 1.0]))
    value.backward()
    assert value.item() == INF and leaf.grad is not None and leaf.grad.tolist() == [0.0] * 4


@pytest.mark.parametrize(
    ("order", "expected"),
    # Σ (a p + (1 - a) q - p^a q^(1 - a)) / (a (1 - a)) in 60 digits, p and q below.
    [
        (1e-12, 0.63489726508165433041),
        (1e-6, 0.63489720472909266722),
        (1e-3, 0.63483700968205390495),
        (0.5, 0.62911395717723632792),
        (0.999, 0.675652658256397374),
        (0.999999, 0.6758057415820555833),
        (-0.000001, 0.63489732543453134378),
        (1.000001, 0.67580604831905987903),
        (2, 1.0035714285714285714),
        (-0.5, 0.69013434814189398057),
    ],
)
def test_alpha_near_its_ends_loses_no_digits(order: float, expected: float) -> None:
    for dtype, tolerance in ((torch.float32, 2e-6), (torch.float64, 1e-12)):
        p, q = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), torch.tensor([0.1, 0.2, 0.7], dtype=torch.float64)
        value = AlphaDivergence(order=order).between(p.log().to(dtype), q.log().to(dtype))
        assert value.item() == pytest.approx(expected, rel=tolerance)
