"""Gradients of single rewards against a backward pass of each, and the step that is made from them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.tiny_models import make_model
from tutelage.advantages import GroupReward
from tutelage.divergences import ReverseKL
from tutelage.losses import Loss
from tutelage.losses.tokens import ClippedSurrogate, PolicyGradient
from tutelage.policies import Student
from tutelage.rewards import Answers, Combination, Judge, Length, Rating, Reward, Setting
from tutelage.rewards.combinations import ConflictAverse, GradientInfluence, WeightedSum
from tutelage.rollout import PairedEngine
from tutelage.runtime import Learner, LocalRuntime
from tutelage.targets import Teacher
from tutelage.tasks import Problem
from tutelage.training import GradientUpdate, Objective, OptimizerSettings, Recipe, UpdateContext
from tutelage.training.updates.reward_gradients import with_reward_gradients
from tutelage.types import Batch, Prompt

LINEAR = PolicyGradient(GroupReward(scale="none"))
PROMPTS = [Prompt([1, 2, 3]), Prompt([4]), Prompt([5, 6, 1, 2])]


@dataclass(frozen=True)
class Odd(Reward):
    """Share of odd tokens."""

    def opened(self, setting: Setting) -> Judge:
        def judge(answers: Answers) -> Tensor:
            return torch.tensor([sum(token % 2 for token in made.response_tokens) / 8 for made in answers.rollouts])

        return judge


class World:
    """A student, and answers of its own that have two rewards."""

    def __init__(self, combination: Combination, *losses: Loss, **settings: Any) -> None:
        student = make_model("qwen3", vocab_size=24, stop_ids=7, seed=1, dtype=torch.float64)
        teacher = make_model("llama", vocab_size=28, stop_ids=[7, 8], seed=2, dtype=torch.float64)
        engine = PairedEngine(student, teacher.requires_grad_(False))
        self.models, self.module = engine.models, engine.models.student.module
        self.recipe = Recipe(Student(), Teacher(), losses)
        rewards = [Odd(label="odd"), Length(8, label="tokens", weight=-0.5)]
        problems = [Problem(f"p{place}", "?") for place in range(3)]
        self.rating = Rating(rewards, combination, problems=problems, response_of=lambda rollout: "")
        answers = engine.generate(Student(), PROMPTS, max_new_tokens=8, num_samples=4)
        rollouts = engine.score(answers)
        groups = [made.prompt_index for made in rollouts]
        judged = self.rating.judge(rollouts, groups, None)
        self.batch = Batch(rollouts, self.rating.entries(judged, groups, 0))
        optimizer = OptimizerSettings(learning_rate=1e-3, **settings)
        self.context = UpdateContext(
            self.models,
            Learner(self.models.student),
            LocalRuntime("cpu"),
            lambda _: optimizer,
            seed=0,
            micro_batch_tokens=20,
            rating=self.rating,
        )

    def gradient(self, values_B: Tensor, *losses: Loss) -> Tensor:
        """Of these losses, if this were the reward; all weights end to end."""
        self.module.zero_grad()
        batch = replace(self.batch, rewards={**self.batch.rewards, "reward": values_B})
        Objective(self.models, replace(self.recipe, losses=losses or self.recipe.losses)).backward(batch)
        return self.taken()

    def taken(self) -> Tensor:
        found = [torch.zeros_like(w) if w.grad is None else w.grad.clone() for w in self.module.parameters()]
        self.module.zero_grad()
        return torch.cat([gradient.flatten() for gradient in found])

    def singles(self, *losses: Loss) -> Tensor:
        """g of each reward, the cost negated: [K, D]."""
        rewards = self.batch.rewards
        return torch.stack([self.gradient(rewards["odd"], *losses), self.gradient(-rewards["tokens"], *losses)])


@pytest.mark.parametrize("loss", [LINEAR, ClippedSurrogate(), ClippedSurrogate(normaliser="sequence_mean")], ids=repr)
def test_the_gram_matrix_is_that_of_the_gradients_of_each_reward_alone(loss: Loss) -> None:
    """Of the losses that read rewards; a divergence beside them has no part in it."""
    world = World(GradientInfluence(), loss, ReverseKL(coefficient=3.0))
    found = with_reward_gradients(world.context, 0, world.recipe, world.batch)
    assert all(weight.grad is None for weight in world.module.parameters())
    singles_KD = world.singles(loss)
    assert found.reward_gram_KK is not None and bool(found.reward_gram_KK.abs().min() > 0)
    torch.testing.assert_close(found.reward_gram_KK, (singles_KD @ singles_KD.T).double(), rtol=1e-5, atol=1e-12)
    assert torch.equal(found.rewards["reward"], world.batch.rewards["reward"]), "the weights move after the step"


def test_the_step_is_the_conflict_averse_direction() -> None:
    """d = g_0 + c |g_0| G~ / |G~|, written out with whole vectors, and the gradient of all else."""
    combination = ConflictAverse(0.7)
    world = World(combination, LINEAR, ReverseKL(coefficient=0.01))
    update = GradientUpdate(world.context)
    pending = update.prepare(0, world.recipe, lambda: world.batch)
    taken_D = world.taken()
    gram_KK = pending.batch.reward_gram_KK
    assert gram_KK is not None
    singles_KD, shares_K = world.singles(LINEAR), torch.tensor([1.0, 0.5]).double() / 1.5
    mean_D = shares_K @ singles_KD
    grid_N = torch.linspace(0, 1, 100_001).double()
    points_N2 = torch.stack([grid_N, 1 - grid_N], 1)
    lengths_N = ((points_N2 @ gram_KK) * points_N2).sum(1).clamp_min(0).sqrt()
    values_N = points_N2 @ (gram_KK @ shares_K) + 0.7 * mean_D.norm() * lengths_N
    kept_D = torch.minimum(points_N2[values_N.argmin()], shares_K) @ singles_KD
    expected_D = 1.5 * (mean_D + 0.7 * mean_D.norm() * kept_D / kept_D.norm())
    beside_D = world.gradient(world.batch.rewards["reward"], ReverseKL(coefficient=0.01))
    assert float(beside_D.norm()) > 0
    torch.testing.assert_close(taken_D, expected_D + beside_D, rtol=1e-4, atol=1e-5 * float(taken_D.abs().max()))
    numbers = world.rating.metrics(pending.batch, 0)
    assert numbers["reward_gradient_norm/odd"] == pytest.approx(float(singles_KD[0].norm()), rel=1e-5)
    cosine = float(singles_KD[0] @ singles_KD[1] / singles_KD.norm(dim=1).prod())
    assert numbers["reward_gradient_cosine"] == pytest.approx(cosine, rel=1e-5)
    assert max(numbers["reward_multiplier/odd"], numbers["reward_multiplier/tokens"]) > 1


def test_what_is_measured_moves_the_influence_of_the_next_step() -> None:
    world = World(GradientInfluence(5.0), LINEAR)
    found = with_reward_gradients(world.context, 0, world.recipe, world.batch)
    before = world.rating.entries([], [], 0)
    assert before["reward"].shape == (0,)
    world.rating.advance(found, 0)
    singles_KD, shares_K = world.singles(), torch.tensor([1.0, 0.5]).double() / 1.5
    influences_K = singles_KD @ singles_KD.sum(0)
    expected_K = (shares_K.log() + 5.0 * influences_K).softmax(0) / shares_K
    numbers = world.rating.metrics(world.batch, 1)
    assert numbers["reward_multiplier/odd"] == pytest.approx(float(expected_K[0]), rel=1e-5) != 1
    assert numbers["reward_multiplier/tokens"] == pytest.approx(float(expected_K[1]), rel=1e-5)


@pytest.mark.parametrize(
    ("combination", "losses", "step"),
    [
        (WeightedSum(), (LINEAR,), 0),
        (ConflictAverse(measured_every=2), (LINEAR,), 1),
        (ConflictAverse(), (ReverseKL(),), 0),
        (ConflictAverse(), (ReverseKL(), PolicyGradient(coefficient=0.0)), 0),
        (ConflictAverse(), (PolicyGradient(GroupReward(reward="odd")),), 0),
    ],
    ids=repr,
)
def test_where_nothing_reads_gradients_none_are_computed(
    combination: Combination, losses: tuple[Loss, ...], step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(combination, *losses)
    monkeypatch.setattr(Learner, "backward", None)
    assert with_reward_gradients(world.context, step, world.recipe, world.batch) is world.batch
