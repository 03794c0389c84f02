"""TrOPD's split: trusted tokens by their sampled KL, the others by a bounded penalty."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from tests.support.token_world import ANSWERS, BEHAVIOUR, STUDENT, TARGET, V, expected_gradient, one_token
from tutelage.divergences import ForwardKL, SampledReverseKL, TrustSplit
from tutelage.losses import TokenFacts


def test_a_trusted_token_is_plain_sampled_reverse_kl() -> None:
    for acceptance in ("sampled", "expected"):
        token = one_token(-2.0, -1.5, uniform=0.999)
        found = TrustSplit(acceptance=acceptance).on_tokens(*token)
        assert found.item() == SampledReverseKL().on_tokens(*token).item() == -0.5


@pytest.mark.parametrize("acceptance", ["sampled", "expected"])
def test_a_token_that_the_target_forbids_is_never_trusted(acceptance: str) -> None:
    leaf = STUDENT.clone().requires_grad_()
    student = leaf.log_softmax(-1)
    now, facts = one_token(-1.0, -math.inf, uniform=0.0, events=student[:1])
    found = TrustSplit(acceptance=acceptance).on_tokens(now, facts)
    found.sum().backward()
    assert found.item() == pytest.approx(ForwardKL().between(STUDENT, TARGET)[0].item()), "all events: the exact KL"
    torch.testing.assert_close(leaf.grad[0], STUDENT[0].exp() - TARGET[0].exp())
    assert (now.grad == 0).all()


def test_the_scalar_form_penalises_the_sampled_token_only() -> None:
    leaf = STUDENT.clone().requires_grad_()
    now, facts = one_token(-1.0, -5.0, uniform=0.9, events=leaf[:1, :2])
    kept = TARGET[:1, :2]  # as a truncated support shows it
    found = TrustSplit(outliers="scalar").on_tokens(now, facts)
    found.sum().backward()
    share = kept.softmax(-1)
    expected = (share * (share.log() - STUDENT[:1, :2])).sum().item()
    assert found.item() == pytest.approx(expected, rel=1e-5)
    assert leaf.grad is None and now.grad.item() == pytest.approx(expected, rel=1e-5)


def test_the_expected_split_is_the_mean_over_draws() -> None:
    draws = [torch.full((2 * len(ANSWERS),), (i + 0.5) / 4000).double() for i in range(0, 4000, 7)]
    trust = TrustSplit(acceptance="sampled")
    mean = torch.stack([expected_gradient(trust, uniforms=draw)[0] for draw in draws[:: len(draws) // 60]]).mean(0)
    torch.testing.assert_close(mean, expected_gradient(TrustSplit(acceptance="expected"))[0], atol=0.02, rtol=0)


def test_both_halves_of_the_split_carry_the_same_ratio() -> None:
    """So the mean over another policy's tokens is the one over the student's, for the value and its gradient."""
    for acceptance in ("sampled", "expected"):
        for outliers in ("forward_kl", "scalar"):
            split = TrustSplit(acceptance=acceptance, outliers=outliers, ratio_cap=math.inf)
            leaf = STUDENT[:1].clone().requires_grad_()
            found = []
            for mu in (STUDENT[0], BEHAVIOUR[0]):
                student = leaf.log_softmax(-1).expand(V, -1)
                now, old, q = student.diagonal(), STUDENT[0], TARGET[0]
                draws, none = torch.full((V,), 0.6).double(), torch.zeros(V).bool()
                facts = TokenFacts(old, mu, q, q - old, draws, none, student, TARGET[:1])
                losses = split.on_tokens(now, facts)
                total = (mu.exp() * losses).sum()
                found.append((total.detach(), torch.autograd.grad(total, leaf)[0]))
            torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("outliers", ["forward_kl", "scalar"])
def test_the_teachers_own_tokens_are_imitated_weakly(outliers: str) -> None:
    """0.001 (log q - log p), as in the paper: no ratio, no split, and the gradient of a weak fine-tuning."""
    for log_p, log_q in ((-5.0, -0.5), (-0.5, -5.0)):
        leaf = STUDENT.clone().requires_grad_()
        now, facts = one_token(log_p, log_q, log_mu=log_q, events=leaf[:1])
        facts = replace(facts, is_teachers=torch.ones(1).bool())
        loss = TrustSplit(outliers=outliers).on_tokens(now, facts)
        loss.sum().backward()
        assert loss.item() == pytest.approx(0.001 * (log_q - log_p))
        assert now.grad.item() == pytest.approx(-0.001)
        assert leaf.grad is None or not leaf.grad.any()
        silent = TrustSplit(outliers=outliers, prefix_weight=0.0).on_tokens(now, facts)
        assert silent.item() == 0
