"""Several teachers, each for the prompts that name it: the tokens of all other prompts stay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch

from tests.support.objectives import objective_of
from tests.support.tiny_models import make_model
from tutelage.divergences import ReverseKL
from tutelage.errors import ConfigurationError
from tutelage.models import Vocabulary
from tutelage.policies import Policy, Student, TrustRegion
from tutelage.rollout import Limits, PairedEngine
from tutelage.types import Batch, Prompt, Rollout

pytestmark = pytest.mark.rollouts

PROMPTS = [
    Prompt([1, 2, 3]),
    Prompt([4], teacher_tokens=[9, 10], teacher_name="code"),
    Prompt([5, 6, 1, 2]),
    Prompt([3, 3], teacher_name="code"),
]
SETTINGS = {"max_new_tokens": 10, "num_samples": 3, "seed": 5}


@pytest.fixture(scope="module")
def models() -> tuple:
    """A student and two unlike teachers."""
    student = make_model("qwen3", vocab_size=24, stop_ids=7, seed=1)
    return student, make_model("llama", vocab_size=28, stop_ids=[7, 8], seed=2), make_model("gemma2", vocab_size=24)


@pytest.fixture(scope="module")
def engine(models: tuple) -> PairedEngine:
    return PairedEngine(models[0], {None: models[1], "code": models[2]}, draft_length=3, limits=Limits(max_rows=4))


def alone(models: tuple, vocabulary: Vocabulary, policy: Policy, teacher: int) -> list[Rollout]:
    """All prompts with one of the teachers."""
    engine = PairedEngine(models[0], models[teacher], vocabulary=vocabulary, draft_length=3)
    prompts = [Prompt(prompt.student_tokens, prompt.teacher_tokens) for prompt in PROMPTS]
    made = engine.generate(policy, prompts, **SETTINGS)
    return made if made[0].is_scored else engine.score(made)


@pytest.mark.parametrize("policy", [TrustRegion(0.3), Student()], ids=repr)
def test_each_prompt_has_its_own_teacher(engine: PairedEngine, models: tuple, policy: Policy) -> None:
    made = engine.generate(policy, PROMPTS, **SETTINGS)
    made = made if made[0].is_scored else engine.score(made)
    places = [(rollout.prompt_index, rollout.sample_index) for rollout in made]
    assert places == sorted(places) and len(places) == 12
    by_teacher = {
        None: alone(models, engine.vocabulary, policy, 1),
        "code": alone(models, engine.vocabulary, policy, 2),
    }
    for place, rollout in enumerate(made):
        assert rollout.teacher_name == PROMPTS[rollout.prompt_index].teacher_name
        expected = by_teacher[rollout.teacher_name][place]
        assert rollout.response_tokens == expected.response_tokens
        torch.testing.assert_close(rollout.teacher_logprobs, expected.teacher_logprobs)
        torch.testing.assert_close(rollout.teacher.support_logprobs_TK, expected.teacher.support_logprobs_TK)
    different = zip(by_teacher[None], by_teacher["code"], strict=True)
    assert any(not torch.allclose(a.teacher_logprobs[:1], b.teacher_logprobs[:1]) for a, b in different)


@pytest.mark.parametrize("divergence", [ReverseKL(top_k=5), ReverseKL(support="full")], ids=str)
@pytest.mark.parametrize("settings", [{}, {"chunk_tokens": 4}, {"micro_batch_tokens": 20}], ids=str)
def test_the_loss_asks_the_same_teachers(engine: PairedEngine, divergence: ReverseKL, settings: dict) -> None:
    made = engine.generate(TrustRegion(0.3), PROMPTS, **SETTINGS)
    count = sum(len(rollout) for rollout in made)

    def loss(rollouts: list[Rollout], teachers: Mapping) -> float:
        objective = objective_of(replace(engine.models, teachers=teachers), divergence, **settings)
        return objective.backward(Batch(rollouts)).loss * sum(len(rollout) for rollout in rollouts)

    own = [rollout for rollout in made if rollout.teacher_name is None]
    routed = [rollout for rollout in made if rollout.teacher_name is not None]
    teachers = engine.models.teachers
    apart = loss(own, {None: teachers[None]}) + loss(routed, {"code": teachers["code"]})
    assert loss(made, teachers) / count == pytest.approx(apart / count, rel=1e-9)


def test_an_unknown_teacher_is_refused(engine: PairedEngine) -> None:
    with pytest.raises(
        ConfigurationError, match=r"names the teacher 'maths'; loaded are one without a name, 'code'\. Name one"
    ):
        engine.generate(TrustRegion(0.1), [Prompt([1], teacher_name="maths")], max_new_tokens=2)
