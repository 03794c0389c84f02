from __future__ import annotations

import pytest
import torch

from tutelage.distributions import entropy, gather_logprobs, kl_divergence
from tutelage.divergences import SampledNLL
from tutelage.losses import TokenFacts

VOCABULARY = 7


def logits(seed: int) -> torch.Tensor:
    return 2 * torch.randn(3, VOCABULARY, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def loss_of(student: torch.Tensor, token: int) -> torch.Tensor:
    tokens = torch.full(student.shape[:-1], token)
    now = gather_logprobs(student.log_softmax(-1), tokens)
    nothing = torch.zeros_like(now.detach())
    facts = TokenFacts(nothing, nothing, nothing, torch.ones_like(nothing), nothing, nothing.bool())
    return SampledNLL().on_tokens(now, facts)


def test_gradient_against_finite_differences() -> None:
    for token in range(VOCABULARY):
        student = logits(0).requires_grad_()
        assert torch.autograd.gradcheck(lambda leaf, token=token: loss_of(leaf, token), student)


def test_mean_over_the_teachers_tokens_is_the_cross_entropy_and_its_gradient_that_of_the_forward_kl() -> None:
    student, teacher = logits(0).requires_grad_(), logits(1).log_softmax(-1)
    mean = sum(teacher[:, token].exp() * loss_of(student, token) for token in range(VOCABULARY))
    forward_kl = kl_divergence(teacher, student.log_softmax(-1))
    torch.testing.assert_close(mean, forward_kl + entropy(teacher))
    found, expected = (torch.autograd.grad(value.sum(), student)[0] for value in (mean, forward_kl))
    torch.testing.assert_close(found, expected)


def test_mean_gradient_over_the_students_own_tokens_is_zero() -> None:
    student = logits(0).requires_grad_()
    own = student.detach().softmax(-1)
    mean = sum(own[:, token] * loss_of(student, token) for token in range(VOCABULARY))
    (gradient,) = torch.autograd.grad(mean.sum(), student)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-15, rtol=0)


def test_it_has_no_support_to_set() -> None:
    assert SampledNLL().window is None
    for field in ("support", "top_k", "rest"):
        with pytest.raises(TypeError, match=field):
            SampledNLL(**{field: 1})
