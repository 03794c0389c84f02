"""What methods with rewards and a teacher are where one of the two says nothing; whole gradients, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.support.objectives import objective_of
from tests.support.tiny_models import make_model
from tutelage.advantages import GroupReward, Sum, TeacherLogRatio
from tutelage.losses import TokenLoss
from tutelage.losses.tokens import CISPO, AnchoredSurrogate, ClippedSurrogate, PolicyGradient, SampledKL
from tutelage.policies import Student
from tutelage.rollout import PairedEngine
from tutelage.types import Batch, Prompt

MIXED = [1.0, 0, 0, 1, 0, 0, 0, 0, 1, 1, 1, 1]
GRPO, BETA = ClippedSurrogate(), 0.3
TEACHER = SampledKL(to="target", coefficient=BETA)
KDRL = (GRPO, TEACHER)


class World:
    """Twelve answers to three prompts, and the gradients of losses on them."""

    def __init__(self, *, is_own_teacher: bool = False) -> None:
        student = make_model("qwen3", vocab_size=24, stop_ids=7, seed=1, dtype=torch.float64)
        other = make_model("llama", vocab_size=28, stop_ids=[7, 8], seed=2, dtype=torch.float64)
        same = make_model("qwen3", vocab_size=24, stop_ids=7, seed=1, dtype=torch.float64)
        engine = PairedEngine(student, (same if is_own_teacher else other).requires_grad_(False))
        self.models, self.module = engine.models, engine.models.student.module
        prompts = [Prompt([1, 2, 3]), Prompt([4]), Prompt([5, 6, 1, 2])]
        self.rollouts = engine.score(engine.generate(Student(), prompts, max_new_tokens=8, num_samples=4))

    def gradient(self, losses: Sequence[TokenLoss], rewards: list[float], micro_batch_tokens: int = 1000) -> Tensor:
        values = torch.tensor(rewards, dtype=torch.float64)
        batch = Batch(self.rollouts, {"reward": values, "correct": values})
        self.module.zero_grad()
        objective_of(self.models, *losses, micro_batch_tokens=micro_batch_tokens).backward(batch)
        return torch.cat([w.grad.flatten() for w in self.module.parameters() if w.grad is not None])


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def assert_equal(found: Tensor, expected: Tensor) -> None:
    assert float(expected.norm()) > 0
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))


def test_kdrl_is_one_advantage_before_the_student_has_moved(world: World) -> None:
    """A + beta (log q - log p), with the teacher's k2 as a loss or its log-ratio as a reward."""
    both = Sum((GroupReward(), TeacherLogRatio()), (1.0, BETA))
    assert_equal(world.gradient([ClippedSurrogate(both)], MIXED), world.gradient(KDRL, MIXED))


def test_kdrl_without_the_teacher_is_grpo(world: World) -> None:
    grpo = world.gradient([GRPO], MIXED)
    assert_equal(world.gradient([GRPO, replace(TEACHER, coefficient=0.0)], MIXED), grpo)
    assert float((world.gradient(KDRL, MIXED) - grpo).norm()) > 0


@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_kdrl_without_spread_is_on_policy_distillation(world: World, reward: float) -> None:
    assert_equal(world.gradient(KDRL, [reward] * 12), world.gradient([TEACHER], [reward] * 12))


def test_kdrl_masks_where_all_or_none_are_right(world: World) -> None:
    """Asked about wrong answers only, the teacher says nothing where all are right, and all where none is."""

    def masked(answers: str, rewards: list[float]) -> Tensor:
        teacher = TeacherLogRatio(answers=answers)
        return world.gradient([ClippedSurrogate(Sum((GroupReward(), teacher), (1.0, BETA)))], rewards)

    assert float(masked("wrong", [1.0] * 12).abs().max()) == 0
    assert_equal(masked("wrong", [0.0] * 12), world.gradient([TEACHER], [0.0] * 12))
    groups = [*MIXED[:4], *[0.0] * 4, *MIXED[:4]]
    # What is failed as a whole has no advantage, and is the teacher's alone; the rest is GRPO's.
    of_failed = masked("failed_groups", groups) - world.gradient([GRPO], groups)
    alone = world.gradient([PolicyGradient(Sum((TeacherLogRatio(answers="failed_groups"),), (BETA,)))], groups)
    assert_equal(of_failed, alone)


@pytest.mark.parametrize("loss", [KDRL, (AnchoredSurrogate(epsilon_high=0.2),)], ids=repr)
def test_with_the_student_as_its_own_teacher_it_is_grpo(loss: tuple[TokenLoss, ...]) -> None:
    own = World(is_own_teacher=True)
    assert_equal(own.gradient(loss, MIXED), own.gradient([GRPO], MIXED))


@pytest.mark.parametrize(
    "loss",
    [
        ClippedSurrogate(normaliser="sequence_mean"),
        ClippedSurrogate(normaliser="constant", normaliser_tokens=8),
        CISPO(normaliser="token_mean"),
        AnchoredSurrogate(normaliser="sequence_sum"),
    ],
    ids=repr,
)
def test_micro_batches_change_nothing(world: World, loss: TokenLoss) -> None:
    whole = world.gradient([loss], MIXED)
    for tokens in (1, 20):
        assert_equal(world.gradient([loss], MIXED, tokens), whole)
