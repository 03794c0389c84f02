"""Targets with a third model, and those through which a gradient flows, in the loss as a whole."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.support.objectives import objective_of
from tests.support.tiny_models import make_model
from tutelage.divergences import ReverseKL
from tutelage.errors import ConfigurationError
from tutelage.models import ModelSet
from tutelage.policies import TrustRegion
from tutelage.rollout import PairedEngine, ReferenceScorer
from tutelage.targets import Bridge, Extrapolated, SelfPast, TargetRule
from tutelage.types import Batch, Prompt, Rollout

MAX_TOKENS = 16_384  # of one forward
FULL, RENORMALISED = ReverseKL(support="full"), ReverseKL(top_k=5, rest="renormalised")


@pytest.fixture(scope="module")
def models() -> ModelSet:
    student = make_model("qwen3", vocab_size=24, stop_ids=7, seed=1)
    teacher = make_model("llama", vocab_size=28, stop_ids=[7, 8], seed=2)
    reference = make_model("qwen3", vocab_size=24, stop_ids=9, seed=3)
    return ModelSet.of(student, teacher, reference=reference)


@pytest.fixture(scope="module")
def rollouts(models: ModelSet) -> list[Rollout]:
    prompts = [Prompt([1, 2, 3]), Prompt([4], teacher_tokens=[9, 10])]
    engine = PairedEngine(models.student, models.teachers, vocabulary=models.vocabulary)
    made = engine.generate(TrustRegion(0.2), prompts, max_new_tokens=9, num_samples=2)
    return ReferenceScorer(models, MAX_TOKENS).score(made)


def backward(models: ModelSet, rollouts: list[Rollout], target: TargetRule, divergence, **settings):
    module = models.student.module
    module.zero_grad()
    objective = objective_of(models, divergence, target=target, **settings)
    return objective.backward(Batch(rollouts)).loss, {name: p.grad.clone() for name, p in module.named_parameters()}


def naive_logprobs(models: ModelSet, rollout: Rollout, reads: str) -> list[Tensor]:
    """log p, log q and log r after each prefix, from plain whole forwards."""
    of_reference = rollout.tokens_for_teacher if reads == "teacher" else rollout.prompt_tokens
    prompts = (rollout.prompt_tokens, rollout.tokens_for_teacher, of_reference)
    found = []
    for model, prompt in zip((models.student, models.teacher, models.reference), prompts, strict=True):
        tokens = torch.tensor([[*prompt, *rollout.response_tokens]])
        logits = model.module(input_ids=tokens).logits[0, len(prompt) - 1 : -1]
        found.append(models.vocabulary.shared_logits(logits).log_softmax(-1))
    return found


def test_the_stop_event_is_that_of_all_three(models: ModelSet) -> None:
    assert models.vocabulary.stop_ids == (7, 8, 9) and models.vocabulary.stop_id == 7


@pytest.mark.parametrize("reads", ["student", "teacher"])
def test_the_reference_reads_what_it_should(models: ModelSet, rollouts: list[Rollout], reads: str) -> None:
    for rollout in ReferenceScorer(replace(models, reference_reads=reads), MAX_TOKENS).score(rollouts):
        _, _, expected = naive_logprobs(models, rollout, reads)
        ids = rollout.support_ids.long()
        tokens = torch.tensor(rollout.response_tokens)[:, None]
        torch.testing.assert_close(rollout.reference.logprobs_T, expected.gather(1, tokens)[:, 0])
        torch.testing.assert_close(rollout.reference.support_logprobs_TK, expected.gather(1, ids))
        tail = 1 - expected.gather(1, ids).exp().sum(1)
        torch.testing.assert_close(rollout.reference.tail_logprobs_T.exp(), tail)


@pytest.mark.sweeps
@pytest.mark.parametrize("divergence", [FULL, RENORMALISED], ids=["full", "renormalised"])
@pytest.mark.parametrize(
    "target", [Extrapolated(1.25), SelfPast(0.4), Bridge(0.6), Bridge(0.6, detach=False)], ids=repr
)
@pytest.mark.parametrize("settings", [{"chunk_tokens": 4}, {"form": "tiled"}], ids=str)
def test_loss_and_gradient_against_the_naive_form(
    models, rollouts, target: TargetRule, divergence: ReverseKL, settings
) -> None:
    if "form" in settings and divergence is FULL and target.needs:
        with pytest.raises(ConfigurationError, match="looks at a third model's whole distribution"):
            backward(models, rollouts, target, divergence, **settings)
        return
    loss, found = backward(models, rollouts, target, divergence, **settings)
    module = models.student.module
    module.zero_grad()
    total, count = torch.zeros((), dtype=torch.float64), 0
    for rollout in rollouts:
        p, q, r = naive_logprobs(models, rollout, "student")
        possible = (p.detach() > -torch.inf).all(0)
        if divergence is RENORMALISED:
            ids = p.detach().topk(divergence.top_k).indices
            p, q, r = (x.gather(1, ids).log_softmax(-1) for x in (p, q, r))
        else:
            p, q, r = p[:, possible], q[:, possible], r[:, possible]
        s, q, r = p.detach() if target.is_constant else p, q.detach(), r.detach()
        if isinstance(target, Extrapolated):
            wanted = (1.25 * q - 0.25 * r).log_softmax(-1)
        elif isinstance(target, SelfPast):
            wanted = (0.6 * q.exp() + 0.4 * r.exp()).log()
        else:
            wanted = (q + 0.6 * s).log_softmax(-1)
        total, count = total + (p.exp() * (p - wanted)).sum(), count + len(rollout)
    (total / count).backward()
    assert loss == pytest.approx(float(total.detach() / count), abs=1e-9)
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-6, atol=2e-8)


def test_letting_the_gradient_through_matters(models, rollouts) -> None:
    losses, gradients = zip(
        *(backward(models, rollouts, Bridge(0.6, detach=detach), FULL) for detach in (True, False)), strict=True
    )
    assert losses[0] == pytest.approx(losses[1], abs=1e-12)
    assert any(not torch.allclose(gradients[0][name], gradients[1][name], atol=1e-4) for name in gradients[0])


def test_a_missing_reference_is_refused(models, rollouts) -> None:
    with pytest.raises(ConfigurationError, match=r"Extrapolated.* compares with a reference, but none is loaded"):
        objective_of(replace(models, reference=None), FULL, target=Extrapolated(1.25)).backward(Batch(rollouts))
    with pytest.raises(ConfigurationError, match="compares with a reference, but none is loaded"):
        ReferenceScorer(replace(models, reference=None), MAX_TOKENS).score(rollouts)
