"""A world of answers of two tokens, small enough that expected gradients of losses on sampled tokens are sums."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from tests.support.rollouts import rollout_of
from tutelage.losses import TokenFacts, TokenLoss
from tutelage.types import Batch

V = 4
ANSWERS = list(itertools.product(range(V), repeat=2))
NUM_PREFIXES = 1 + V  # the empty one, and one per first token


def tables(seed: int) -> Tensor:
    """Log-probabilities [prefix, token] of a random model."""
    logits = torch.randn(NUM_PREFIXES, V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return logits.log_softmax(-1)


STUDENT, TARGET, BEHAVIOUR, REFERENCE = tables(0), tables(1), tables(2), tables(3)


def reward_of(answer: tuple[int, ...]) -> float:
    """What an answer is worth: numbers without a pattern."""
    return float((3 * answer[0] + 5 * answer[1]) % 7)


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
    reference_N = of_answers(REFERENCE, answers)
    batch = Batch(
        [
            rollout_of(
                [0],
                list(answer),
                mu_N[2 * i : 2 * i + 2],
                old_N[2 * i : 2 * i + 2],
                {"reference.logprobs_T": reference_N[2 * i : 2 * i + 2]},
                prompt_index=i // group,
            )
            for i, answer in enumerate(answers)
        ],
        {
            "reward": torch.tensor([reward_of(answer) for answer in answers], dtype=torch.float64),
            "right": torch.tensor([float(reward_of(answer) > 3) for answer in answers], dtype=torch.float64),
        },
    )
    prefixes_N = [prefix for a, _ in answers for prefix in (0, 1 + a)]
    facts = TokenFacts(
        old_N,
        mu_N,
        target_N,
        torch.full_like(old_N, torch.nan) if loss.advantage is None else loss.advantage(batch, target_N),
        torch.full_like(old_N, 0.5) if uniforms is None else uniforms,
        torch.zeros_like(old_N, dtype=torch.bool),
        student[prefixes_N],
        TARGET[prefixes_N],
        reference_N,
        torch.zeros_like(old_N),
        torch.ones_like(old_N, dtype=torch.bool),
    )
    factors_N = loss.factors(batch, torch.ones_like(old_N))
    losses_N = loss.on_tokens(now_N, facts) * (1 if factors_N is None else factors_N)
    shares_P = mu_N.reshape(len(combinations), -1).sum(-1).exp()
    total = (losses_N.reshape(len(combinations), -1).sum(-1) * shares_P).sum() / group
    total.backward()
    assert leaf.grad is not None
    return leaf.grad, float(total.detach())


def one_token(
    log_p: float, log_q: float, uniform: float = 0.5, log_mu: float | None = None, events: Tensor = STUDENT[:1]
) -> tuple[Tensor, TokenFacts]:
    """log p as a leaf, and what is known of the token; the target's events are those of TARGET's first prefix."""
    leaf, q, u = torch.tensor([log_p]), torch.tensor([log_q]), torch.tensor([uniform]).double()
    mu, none = leaf.clone() if log_mu is None else torch.tensor([log_mu]), torch.zeros(1).bool()
    facts = TokenFacts(
        leaf.clone(), mu, q, q - leaf, u, none, events, TARGET[:1, : events.shape[1]], is_inside=torch.ones(1).bool()
    )
    return leaf.requires_grad_(), facts
