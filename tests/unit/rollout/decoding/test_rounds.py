"""On a world small enough to enumerate, lock-step decoding samples exactly the product of mu.

The engine does token for token what a plain walk does that draws from mu, and samples of it follow the enumerated law.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
import torch

from tests.support.enumerated import SMALL, NextToken, chi_square_p_value, enumerated_law, make_world, walk
from tests.support.tiny_models import make_model
from tutelage.policies import (
    FixedBlend,
    Interleaved,
    Mixture,
    Policy,
    Student,
    Teacher,
    TeacherPrefix,
    Temperature,
    TrustRegion,
)
from tutelage.rollout import Limits, PairedEngine, uniforms
from tutelage.types import Prompt

pytestmark = pytest.mark.rollouts

LENGTH, STOP = 3, 5
NUM_SAMPLES = 10_000

POLICIES = [
    Student(),
    Teacher(),
    TrustRegion(kl_radius=0.01),
    TrustRegion(kl_radius=0.2),
    FixedBlend(blend=0.4),
    Mixture(weight=0.4),
    Interleaved(top_k=2, teacher_temperature=0.5),
    Temperature(temperature=0.7),
    TeacherPrefix(num_tokens=2),
]


@pytest.mark.statistics
@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_sequence_frequencies_are_the_product_of_mu(policy: Policy) -> None:
    student, teacher = make_world()
    # Two prompts of different lengths, and a teacher that reads another context for the second one.
    prompts = [Prompt([1, 2, 3]), Prompt([2], teacher_tokens=[3, 0, 1, 1])]
    engine = PairedEngine(student, teacher, draft_length=1, limits=Limits(max_rows=2 * NUM_SAMPLES))
    rollouts = engine.generate(
        policy, prompts, max_new_tokens=LENGTH, num_samples=NUM_SAMPLES, records_statistics=False
    )
    for number, prompt in enumerate(prompts):
        counts = Counter(tuple(r.response_tokens) for r in rollouts if r.prompt_index == number)
        law = enumerated_law(student, teacher, policy, prompt, LENGTH)
        assert math.isclose(sum(law.values()), 1.0, rel_tol=1e-5)
        assert len(law) > 50
        assert chi_square_p_value(counts, law) > 1e-3


@pytest.mark.sweeps
@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_tokens_are_those_of_a_plain_walk(policy: Policy) -> None:
    """In float64, where no rounding tips a draw: one slot, a few that are refilled, and all at once."""
    student, teacher = make_world(dtype=torch.float64, **SMALL)
    prompts = [Prompt([1, 2, 3]), Prompt([2], teacher_tokens=[3, 0, 1, 1])]
    following = [NextToken(student, teacher, policy, prompt) for prompt in prompts]
    for slots in (1, 3, 8, 18):
        engine = PairedEngine(student, teacher, draft_length=1, limits=Limits(max_rows=slots))
        for rollout in engine.generate(policy, prompts, max_new_tokens=7, num_samples=9, seed=3, step=5):
            number, sample = torch.tensor([rollout.prompt_index]), torch.tensor([rollout.sample_index])
            streams = uniforms(3, 5, number, sample, torch.arange(7))
            assert rollout.response_tokens == walk(following[rollout.prompt_index], *streams, is_drafted=False), slots


@pytest.mark.statistics
def test_the_chi_square_test_has_power() -> None:
    """Samples of one policy are refused as samples of a slightly different one."""
    student, teacher = make_world()
    engine = PairedEngine(student, teacher, draft_length=1, limits=Limits(max_rows=NUM_SAMPLES))
    rollouts = engine.generate(
        TrustRegion(kl_radius=0.01),
        [[1, 2, 3]],
        max_new_tokens=LENGTH,
        num_samples=NUM_SAMPLES,
        records_statistics=False,
    )
    law = enumerated_law(student, teacher, Student(), Prompt([1, 2, 3]), LENGTH)
    assert chi_square_p_value(Counter(tuple(r.response_tokens) for r in rollouts), law) < 1e-6


@pytest.mark.sweeps
@pytest.mark.parametrize("draft_length", [1, 3])
@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_records_agree_with_naive_forwards(policy: Policy, draft_length: int) -> None:
    """Every recorded number, recomputed for each token from a plain forward over its prefix."""
    student, teacher = make_world(seed=3)
    engine = PairedEngine(student, teacher, draft_length=draft_length, support_size=3)
    prompts = [Prompt([1, 2, 3]), Prompt([2], teacher_tokens=[3, 0, 1, 1])]
    rollouts = engine.generate(policy, prompts, max_new_tokens=8, num_samples=4)
    rollouts = rollouts if rollouts[0].is_scored else engine.score(rollouts)
    vocabulary = engine.vocabulary
    assert [(r.prompt_index, r.sample_index) for r in rollouts] == list(itertools.product(range(2), range(4)))
    for rollout in rollouts:
        assert rollout.finished == (rollout.response_tokens[-1] == STOP)
        assert STOP not in rollout.response_tokens[:-1]
        assert 4 not in rollout.response_tokens, "all stop mass is emitted as the student's own id"
        assert rollout.finished or len(rollout) == 8
        for place, token in enumerate(rollout.response_tokens):
            p, q = (
                vocabulary.shared_logits(
                    model.module(input_ids=torch.tensor([[*prompt, *rollout.response_tokens[:place]]])).logits[:, -1]
                )
                .detach()
                .log_softmax(-1)[0]
                for model, prompt in ((student, rollout.prompt_tokens), (teacher, rollout.tokens_for_teacher))
            )
            mu = policy.propose(p[None], q[None], torch.tensor([place]))
            close = {"rtol": 1e-4, "atol": 2e-5}
            torch.testing.assert_close(rollout.student_logprobs[place], p[token], **close)
            torch.testing.assert_close(rollout.teacher_logprobs[place], q[token], **close)
            torch.testing.assert_close(rollout.behaviour_logprobs[place], mu.logprobs_BV[0, token], **close)
            entropy_p, entropy_q = (-(x.exp() * x.nan_to_num(neginf=0.0)).sum() for x in (p, q))
            torch.testing.assert_close(rollout.student.entropy_T[place], entropy_p, **close)
            torch.testing.assert_close(rollout.teacher.entropy_T[place], entropy_q, **close)
            support = p.topk(3).indices
            assert rollout.support_ids[place].tolist() == support.tolist()
            torch.testing.assert_close(rollout.student.support_logprobs_TK[place], p[support], **close)
            torch.testing.assert_close(rollout.teacher.support_logprobs_TK[place], q[support], **close)
            tail = 1 - q[support].exp().sum()
            torch.testing.assert_close(rollout.teacher.tail_logprobs_T[place].exp(), tail, **close)
            overlap = len(set(support.tolist()) & set(q.topk(3).indices.tolist())) / 3
            torch.testing.assert_close(rollout.support_overlap[place], torch.tensor(overlap))
            shared = set(q.topk(3).indices.tolist())
            assert rollout.support_is_shared[place].tolist() == [token in shared for token in support.tolist()]
            if isinstance(policy, TrustRegion):
                torch.testing.assert_close(rollout.blend[place], mu.diagnostics["blend"][0], rtol=1e-3, atol=1e-4)
                assert rollout.kl_to_student[place] <= policy.kl_radius * 1.001 + 1e-6


def test_rollouts_do_not_depend_on_batching() -> None:
    """Each token draws from its own stream: cutting the batch up changes nothing (float64: rounding tips no draw)."""
    student = make_model("qwen3", vocab_size=12, stop_ids=5, seed=1)
    teacher = make_model("llama", vocab_size=12, stop_ids=5, seed=2)
    prompts = [[1], [2, 3, 4], [6, 7], [1, 2, 3, 4, 6, 7, 8]]
    together = PairedEngine(student, teacher, limits=Limits(max_rows=64))
    alone = PairedEngine(student, teacher, limits=Limits(max_rows=1))
    for policy in (Student(), TrustRegion(kl_radius=0.05)):
        settings = {"max_new_tokens": 12, "num_samples": 3, "seed": 9, "step": 4}
        first = together.generate(policy, prompts, **settings)
        second = alone.generate(policy, prompts, **settings)
        assert [r.response_tokens for r in first] == [r.response_tokens for r in second]
        assert [(r.prompt_index, r.sample_index) for r in first] == [(r.prompt_index, r.sample_index) for r in second]


def test_a_new_seed_step_prompt_or_sample_draws_anew() -> None:
    student = make_model("qwen3", vocab_size=40, seed=1)
    engine = PairedEngine(student)

    def tokens(**settings):
        return [tuple(r.response_tokens) for r in engine.generate(Student(), [[1], [1]], max_new_tokens=8, **settings)]

    answers = [*tokens(num_samples=2), *tokens(num_samples=2, seed=1), *tokens(num_samples=2, step=1)]
    assert len(set(answers)) == 12
    assert tokens() == tokens()


def test_greedy_equals_generate(architecture: str) -> None:
    """Token for token, for prompts of different lengths, through the ragged cache."""
    model = make_model(architecture, vocab_size=40, stop_ids=7, seed=5, dtype=torch.float32)
    prompts = [[1, 2, 3, 4, 5, 6], [9], [11, 12, 13]]
    greedy = Temperature(temperature=0.0)
    rollouts = PairedEngine(model).generate(greedy, prompts, max_new_tokens=24)
    for prompt, rollout in zip(prompts, rollouts, strict=True):
        expected = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=24)[0, len(prompt) :].tolist()
        assert rollout.response_tokens == expected
    assert len({tuple(r.response_tokens) for r in rollouts}) == 3


def test_the_kl_of_whole_answers_is_what_was_spent_token_by_token() -> None:
    """KL(P_mu || P_S) = E[Σ KL(mu_t || p_t)], at most the budget times the length (TRB, appendix sequence_kl)."""
    budget, length, prompt = 0.05, 3, Prompt([1, 2, 3])
    student, teacher = make_world(vocabulary=5, **SMALL)
    policy = TrustRegion(budget)
    law, own = (enumerated_law(student, teacher, each, prompt, length) for each in (policy, Student()))
    following = NextToken(student, teacher, policy, prompt)

    def spent(answer: tuple[int, ...]) -> float:
        steps = [following(answer[:place]) for place in range(len(answer))]
        return sum(sum(b * math.log(b / a) for a, b in zip(p, mu, strict=True) if b > 0) for p, mu in steps)

    whole = sum(share * math.log(share / own[answer]) for answer, share in law.items())
    by_token = sum(share * spent(answer) for answer, share in law.items())
    assert whole == pytest.approx(by_token, rel=1e-5) and 0.5 * budget < whole <= length * budget * (1 + 2e-3)
