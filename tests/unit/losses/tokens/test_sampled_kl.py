"""Estimates of a KL divergence: their values, and gradients that are those of a divergence in expectation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.support.token_world import REFERENCE, STUDENT, TARGET, expected_gradient
from tutelage.errors import ConfigurationError
from tutelage.losses import TokenFacts
from tutelage.losses.tokens import GatedImitation, SampledKL

P, OTHER = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.7, 0.2, 0.1]).double()


def known(now: Tensor, other: Tensor) -> TokenFacts:
    none = torch.zeros_like(now).detach()
    return TokenFacts(now.detach(), now.detach(), other, none, none, none > 0, reference_logprobs=other)


@pytest.mark.parametrize(
    ("estimator", "expected", "mean"),
    [
        ("k1+", [-0.3365, 0.4055, 0.6931], 0.0920),
        ("k2", [0.0566, 0.0822, 0.2402], 0.1010),
        ("k3", [0.0635, 0.0721, 0.1931], 0.0920),
        ("k3+", [0.0635, 0.0721, 0.1931], 0.0920),
    ],
)
@pytest.mark.parametrize("to", ["reference", "target"])
def test_values_by_hand(estimator: str, expected: list[float], mean: float, to: str) -> None:
    values = SampledKL(to=to, estimator=estimator).on_tokens(P.log(), known(P.log(), OTHER.log()))
    assert values.tolist() == pytest.approx(expected, abs=1e-4)
    assert float((P * values).sum()) == pytest.approx(mean, abs=1e-4)


def gradient_of_kl(other: Tensor, *, is_forward: bool) -> Tensor:
    """At both places of an answer, the second weighted by how often the student comes there."""
    leaf = STUDENT.clone().requires_grad_()
    p, visits = leaf.log_softmax(-1), torch.cat([torch.ones(1), STUDENT[0].exp()])
    pairs = (other.exp() * (other - p)) if is_forward else (p.exp() * (p - other))
    (visits * pairs.sum(-1)).sum().backward()
    assert leaf.grad is not None
    return leaf.grad


@pytest.mark.parametrize("estimator", ["k1+", "k2", "k3", "k3+"])
@pytest.mark.parametrize(("to", "other"), [("reference", REFERENCE), ("target", TARGET)])
def test_the_expected_gradient_is_that_of_a_divergence(estimator: str, to: str, other: Tensor) -> None:
    """At every visited prefix; how the visits change belongs to returns, see `teacher_log_ratio`."""
    found, _ = expected_gradient(SampledKL(to=to, estimator=estimator))
    expected = gradient_of_kl(other, is_forward=estimator == "k3")
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert expected.abs().max() > 0.01


def test_tokens_that_the_other_model_rules_out_cost_a_bounded_sum() -> None:
    now = torch.tensor([-0.1], dtype=torch.float64, requires_grad=True)
    for estimator in ("k1+", "k2", "k3", "k3+"):
        value = SampledKL(estimator=estimator).on_tokens(now, known(now, torch.tensor([-math.inf]).double()))
        (slope,) = torch.autograd.grad(value.sum(), now)
        assert value.isfinite().all() and 0 < slope.item() <= 20


@pytest.mark.parametrize(("gap", "gate"), [(0.2, 0.731), (0.0, 0.5), (-0.2, 0.269), (1.0, 0.993)])
def test_a_gate_opens_where_the_teacher_prefers_the_token(gap: float, gate: float) -> None:
    now = torch.tensor([-2.0], dtype=torch.float64, requires_grad=True)
    value = GatedImitation().on_tokens(now, known(now, now.detach() + gap))
    (slope,) = torch.autograd.grad(value.sum(), now)
    assert slope.item() == pytest.approx(-gate, abs=1e-3) and value.item() == pytest.approx(gate * gap, abs=1e-3)


def test_what_would_teach_nothing_cannot_be_chosen() -> None:
    with pytest.raises(ConfigurationError, match=r"loss\.estimator is 'k1', whose gradient is 0 in the mean"):
        SampledKL(estimator="k1")
    with pytest.raises(ConfigurationError, match=r"loss\.estimator is 'k4'; expected one of k2, k3, k1\+, k3\+"):
        SampledKL(estimator="k4")
    with pytest.raises(ConfigurationError, match=r"loss\.to is 'student'; expected one of reference, target"):
        SampledKL(to="student")
    with pytest.raises(ConfigurationError, match=r"loss\.sharpness is 0"):
        GatedImitation(sharpness=0)
