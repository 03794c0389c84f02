"""Estimates from sampled tokens, against sums over all answers of a world with 4 tokens and 2 places."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.support.rollouts import rollout_of
from tests.support.token_world import ANSWERS, BEHAVIOUR, STUDENT, TARGET, V, expected_gradient, of_answers, one_token
from tutelage.advantages import TeacherLogRatio
from tutelage.divergences import ReverseKL, SampledReverseKL
from tutelage.errors import ConfigurationError
from tutelage.losses import DistributionLoss
from tutelage.losses.tokens.windowed import score_term
from tutelage.types import Batch, Rollout


def at_frozen_prefixes(divergence: DistributionLoss, behaviour: Tensor = STUDENT) -> tuple[Tensor, float]:
    """The same for an exact divergence at every prefix, weighed by how often `behaviour` visits it."""
    leaf = STUDENT.clone().requires_grad_()
    visits_P = torch.cat([torch.ones(1).double(), behaviour[0].exp()])
    total = (divergence.between(leaf.log_softmax(-1), TARGET) * visits_P).sum()
    total.backward()
    assert leaf.grad is not None
    return leaf.grad, float(total.detach())


def test_own_credit_is_reverse_kl_at_frozen_prefixes() -> None:
    truth, value = at_frozen_prefixes(ReverseKL())
    for baseline in ("none", "expected"):
        found, estimate = expected_gradient(SampledReverseKL(baseline=baseline))
        torch.testing.assert_close(found, truth, atol=1e-12, rtol=0)
        assert estimate == pytest.approx(value)


@pytest.mark.parametrize("discount", [0.0, 0.5, 1.0])
def test_the_other_answers_are_a_baseline_without_bias(discount: float) -> None:
    truth, value = expected_gradient(SampledReverseKL(discount=discount))
    found, estimate = expected_gradient(SampledReverseKL(discount=discount, baseline="leave_one_out"), group=2)
    torch.testing.assert_close(found, truth, atol=1e-12, rtol=0)
    assert estimate == pytest.approx(value)


def test_full_credit_is_reverse_kl_of_whole_answers() -> None:
    leaf = STUDENT.clone().requires_grad_()
    log_p = of_answers(leaf.log_softmax(-1), ANSWERS).reshape(-1, 2).sum(-1)
    log_q = of_answers(TARGET, ANSWERS).reshape(-1, 2).sum(-1)
    value = (log_p.exp() * (log_p - log_q)).sum()
    value.backward()
    for baseline in ("none", "expected"):
        found, estimate = expected_gradient(SampledReverseKL(discount=1.0, baseline=baseline))
        torch.testing.assert_close(found, leaf.grad, atol=1e-12, rtol=0)
        assert estimate == pytest.approx(float(value.detach()))
    own, _ = expected_gradient(SampledReverseKL())
    assert (own - leaf.grad).abs().max() > 0.01, "the two are not the same thing"


def test_another_behaviour_needs_the_ratio() -> None:
    truth, value = at_frozen_prefixes(ReverseKL(), BEHAVIOUR)
    for baseline in ("none", "expected"):
        found, estimate = expected_gradient(SampledReverseKL(baseline=baseline, ratio_cap=math.inf), BEHAVIOUR)
        torch.testing.assert_close(found, truth, atol=1e-12, rtol=0)
        assert estimate == pytest.approx(value)
    capped, _ = expected_gradient(SampledReverseKL(ratio_cap=1.0), BEHAVIOUR)
    assert (capped - truth).abs().max() > 0.01, "the cap is not without effect"


def test_baselines_lower_the_variance() -> None:
    """Of the gradient at the first token, where rewards vary around a mean that is far from 0."""

    def spread(baseline: float) -> float:
        p, rewards = STUDENT[0].exp(), TARGET[0] - STUDENT[0] - 5.0
        scores_av = torch.eye(V).double() - p
        gradients_av = (rewards - baseline)[:, None] * scores_av
        return float((p @ gradients_av.square()).sum() - (p @ gradients_av).square().sum())

    assert spread(float((STUDENT[0].exp() * (TARGET[0] - STUDENT[0] - 5.0)).sum())) < spread(0.0) / 2


def test_a_top_k_sum_in_the_advantage_would_teach_nothing() -> None:
    """It is the same whatever token was drawn, and E[c grad log p] = 0. What we put there is not that."""
    kept = STUDENT.topk(2).indices
    top_k = ReverseKL().between(STUDENT.gather(1, kept).log_softmax(-1), TARGET.gather(1, kept).log_softmax(-1))
    leaf = STUDENT.clone().requires_grad_()
    now_N = of_answers(leaf.log_softmax(-1), ANSWERS)
    prefixes_N = [prefix for a, _ in ANSWERS for prefix in (0, 1 + a)]
    shares = now_N.detach().reshape(-1, 2).sum(-1).exp().repeat_interleave(2)
    (score_term(now_N, -top_k[prefixes_N]) * shares).sum().backward()
    assert leaf.grad is not None and leaf.grad.abs().max() < 1e-15
    ours, _ = expected_gradient(SampledReverseKL())
    assert ours.abs().max() > 0.1


def test_differentiating_the_reward_would_teach_nothing_either() -> None:
    leaf = STUDENT.clone().requires_grad_()
    now_N = of_answers(leaf.log_softmax(-1), ANSWERS)
    shares = now_N.detach().reshape(-1, 2).sum(-1).exp().repeat_interleave(2)
    ((now_N - of_answers(TARGET, ANSWERS)) * shares).sum().backward()
    assert leaf.grad is not None and leaf.grad.abs().max() < 1e-15


def test_discounted_returns_and_the_mean_of_the_others() -> None:
    def rollout(length: int, prompt: int) -> Rollout:
        return rollout_of([0], [0] * length, torch.zeros(length), torch.zeros(length), prompt_index=prompt)

    batch = Batch([rollout(3, 0), rollout(1, 1), rollout(1, 0), rollout(2, 1), rollout(2, 0)])
    rewards = torch.tensor([1.0, 2, 4, 8, 16, 3, 5, 7, 9]).double()
    found = TeacherLogRatio(0.5)(batch, rewards)  # log p is 0
    assert found.tolist() == [3, 4, 4, 8, 16, 5.5, 5, 11.5, 9]
    others = SampledReverseKL(baseline="leave_one_out").advantage(batch, rewards)
    means = [32 / 3] * 3 + [4.0] + [23 / 5] + [8.0] * 2 + [23 / 4] * 2
    torch.testing.assert_close(others, rewards - torch.tensor(means).double())
    with pytest.raises(ConfigurationError, match="a prompt has one answer only"):
        TeacherLogRatio(leave_one_out=True)(Batch(batch.rollouts[:3]), rewards[:5])
    assert SampledReverseKL(baseline="leave_one_out").advantage.min_samples_per_prompt == 2


def test_the_ratio_is_capped() -> None:
    for log_mu, expected in ((-1.0, 1.0), (-1.5, math.exp(0.5)), (-9.0, 3.0)):
        now, facts = one_token(-1.0, -2.0, log_mu=log_mu)
        loss = SampledReverseKL(ratio_cap=3.0).on_tokens(now, facts)
        assert loss.item() == pytest.approx(expected)
        loss.sum().backward()
        assert now.grad.item() == pytest.approx(expected)


def test_a_token_that_the_target_forbids_is_an_infinite_loss_and_not_nan() -> None:
    for baseline in ("none", "expected"):
        now, facts = one_token(-1.0, -math.inf)
        loss = SampledReverseKL(baseline=baseline).on_tokens(now, facts)
        loss.sum().backward()
        assert loss.item() == math.inf and now.grad.isfinite().all()
