"""Estimates from sampled tokens, against sums over all answers of a world with 4 tokens and 2 places."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.support.rollouts import rollout_of
from tutelage.advantages import TeacherLogRatio
from tutelage.divergences import ForwardKL, ReverseKL, SampledReverseKL, TrustSplit
from tutelage.errors import ConfigurationError
from tutelage.losses import DistributionLoss, TokenFacts, TokenLoss
from tutelage.losses.tokens.windowed import score_term
from tutelage.types import Batch, Rollout

V = 4
ANSWERS = list(itertools.product(range(V), repeat=2))
NUM_PREFIXES = 1 + V  # the empty one, and one per first token


def tables(seed: int) -> Tensor:
    """Log-probabilities [prefix, token] of a random model."""
    logits = torch.randn(NUM_PREFIXES, V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return logits.log_softmax(-1)


STUDENT, TARGET, BEHAVIOUR = tables(0), tables(1), tables(2)


def of_answers(table: Tensor, answers: list[tuple[int, ...]]) -> Tensor:
    """Log-probability of each token, answers end to end: [2 · answers]."""
    return torch.stack([table[prefix, token] for a, b in answers for prefix, token in ((0, a), (1 + a, b))])


def expected_gradient(
    loss: TokenLoss, behaviour: Tensor = STUDENT, uniforms: Tensor | None = None, group: int = 1
) -> tuple[Tensor, float]:
    """Gradient in the student's logits, and value, of the summed loss of an answer, over all answers of `behaviour`.

    Args:
      group: answers to one prompt; every combination of so many is one prompt.
    """
    leaf = STUDENT.clone().requires_grad_()
    student = leaf.log_softmax(-1)
    combinations = list(itertools.product(ANSWERS, repeat=group))
    answers = [answer for combination in combinations for answer in combination]
    mu_N, now_N = of_answers(behaviour, answers), of_answers(student, answers)
    old_N, target_N = now_N.detach(), of_answers(TARGET, answers)
    batch = Batch(
        [
            rollout_of([0], list(answer), mu_N[2 * i : 2 * i + 2], old_N[2 * i : 2 * i + 2], prompt_index=i // group)
            for i, answer in enumerate(answers)
        ]
    )
    prefixes_N = [prefix for a, _ in answers for prefix in (0, 1 + a)]
    facts = TokenFacts(
        old_N,
        mu_N,
        target_N,
        loss.advantage(batch, target_N),
        torch.full_like(old_N, 0.5) if uniforms is None else uniforms,
        torch.zeros_like(old_N, dtype=torch.bool),
        student[prefixes_N],
        TARGET[prefixes_N],
    )
    losses_N = loss.on_tokens(now_N, facts)
    shares_P = mu_N.reshape(len(combinations), -1).sum(-1).exp()
    total = (losses_N.reshape(len(combinations), -1).sum(-1) * shares_P).sum() / group
    total.backward()
    assert leaf.grad is not None
    return leaf.grad, float(total.detach())


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


def one_token(
    log_p: float, log_q: float, uniform: float = 0.5, log_mu: float | None = None, events: Tensor = STUDENT[:1]
) -> tuple[Tensor, TokenFacts]:
    """log p as a leaf, and what is known of the token; the target's events are those of TARGET's first prefix."""
    leaf, q, u = torch.tensor([log_p]), torch.tensor([log_q]), torch.tensor([uniform]).double()
    mu, none = leaf.clone() if log_mu is None else torch.tensor([log_mu]), torch.zeros(1).bool()
    facts = TokenFacts(leaf.clone(), mu, q, q - leaf, u, none, events, TARGET[:1, : events.shape[1]])
    return leaf.requires_grad_(), facts


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


# --- TrOPD -----------------------------------------------------------------------------------------------------------


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
