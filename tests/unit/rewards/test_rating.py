"""The rewards of a run, opened: what a judge may return, labels, weights of a step, a state that moves and returns."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.rated_answers import answers_of
from tutelage.errors import CheckpointError, ConfigurationError, RewardError
from tutelage.rewards import (
    Answers,
    Combination,
    Correct,
    Judge,
    Length,
    Overlong,
    Rating,
    Reward,
    RewardWarning,
    Setting,
)
from tutelage.rewards.combinations import Constrained, Hypervolume, PidConstrained, Progress, WeightedSum
from tutelage.schedules import Linear
from tutelage.types import Batch


@dataclass(frozen=True)
class Says(Reward):
    """Whatever it is told to."""

    values: Any = None

    def opened(self, setting: Setting) -> Judge:
        return lambda answers: self.values


def rating_of(*rewards: Reward, combination: Combination | None = None, texts: list[str] | None = None) -> Rating:
    answers = answers_of(texts or ["ab", "abcd", "a"])
    return Rating(
        rewards,
        combination,
        Setting(max_new_tokens=4),
        problems=answers.problems,
        response_of=lambda rollout: f"text {rollout.prompt_index}",
    )


def batch_of(rating: Rating, answers: Answers, step: int = 0) -> Batch:
    groups = [rollout.prompt_index for rollout in answers.rollouts]
    found = rating.judge(answers.rollouts, groups, answers.correct)
    return Batch(answers.rollouts, rating.entries(found, groups, step))


def test_every_reward_has_an_entry_and_one_is_combined() -> None:
    rating = rating_of(Correct(label="right", weight=2.0), Length(label="tokens", weight=Linear(0.0, -4.0, 4)))
    answers = answers_of(["ab", "abcd", "a"])
    rewards = batch_of(rating, answers, step=1).rewards
    assert {name: values_B.tolist() for name, values_B in rewards.items()} == {
        "right": [1, 0, 1],
        "tokens": [0.5, 1, 0.25],
        "reward": [1.5, -1, 1.75],
    }


def test_a_judge_sees_problems_texts_and_verdicts() -> None:
    seen: list[Answers] = []

    @dataclass(frozen=True)
    class Sees(Reward):
        def opened(self, setting: Setting) -> Judge:
            assert setting == Setting(max_new_tokens=4)

            def judge(answers: Answers) -> Tensor:
                seen.append(answers)
                return torch.zeros(len(answers))

            return judge

    rating, answers = rating_of(Sees(label="a")), answers_of(["ab", "abcd", "a"])
    rating.judge(answers.rollouts[1:], [2, 0], [False, True])
    assert [problem.id for problem in seen[0].problems] == ["p2", "p0"]
    assert seen[0].responses == ["text 1", "text 2"] and seen[0].correct == [False, True]
    assert rating.judge([], [], []) == [] and len(seen) == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (torch.zeros(2), r"the reward 'a' returned \[2\] for 3 answers; expected a tensor with one number for each"),
        (torch.zeros(3, 1), r"returned \[3, 1\] for 3 answers"),
        ([0.0] * 3, r"returned list for 3 answers"),
        (torch.tensor([0.0, math.nan, 0.0]), r"is nan for an answer to problem p1; .* The answer begins 'text 1'"),
        (torch.tensor([0.0, 0.0, -math.inf]), r"is -inf for an answer to problem p2"),
    ],
)
def test_what_is_no_finite_number_for_each_answer_is_refused(values: Any, message: str) -> None:
    answers = answers_of(["ab", "abcd", "a"])
    with pytest.raises(RewardError, match=message):
        batch_of(rating_of(Says(values, label="a")), answers)


def test_a_combination_that_is_not_finite_is_refused() -> None:
    huge = Says(torch.full((3,), 1e308, dtype=torch.float64), label="a", weight=10.0)
    with pytest.raises(RewardError, match=r"of finite rewards is not finite; .* Scale the rewards with their weights"):
        batch_of(rating_of(huge), answers_of(["ab", "abcd", "a"]))


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ([Length(label="a"), Overlong(label="a")], r"2 rewards have the label 'a'; metrics tell them apart by it"),
        ([Length()], r"1 rewards have the label ''"),
        ([Length(label="reward")], r"'reward', which is the name of all rewards combined\. Choose another"),
        ([Length(label="correct")], r"'correct', which is the name of the verdict of the verifier"),
        ([], r"there is no reward to combine"),
    ],
)
def test_rewards_have_labels_of_their_own(rewards: list[Reward], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        rating_of(*rewards)


@pytest.mark.parametrize(
    "combination",
    [Constrained({"a": 0.5}), PidConstrained({"a": 0.5}), Progress(window=1), Hypervolume(), WeightedSum()],
    ids=repr,
)
def test_a_restored_rating_goes_on_as_the_one_that_was_kept(combination: Combination) -> None:
    rewards = [Length(label="a"), Correct(label="correct")]
    one, answers = rating_of(*rewards, combination=combination), answers_of(["ab", "abcd", "a"])
    for step in range(3):
        one.advance(batch_of(one, answers, step), step)
    other = rating_of(*rewards, combination=combination)
    other.restore(json.loads(json.dumps(one.state)))
    for step in range(3, 6):
        batches = [batch_of(each, answers, step) for each in (one, other)]
        assert torch.equal(batches[0].rewards["reward"], batches[1].rewards["reward"])
        assert one.metrics(batches[0], step) == other.metrics(batches[1], step)
        for each, batch in zip((one, other), batches, strict=True):
            each.advance(batch, step)
    assert json.dumps(one.state) == json.dumps(other.state)


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"u": {"a": 0.0}},
        {"u": {"b": 0.0}, "velocity": {"b": 0.0}},
        {"u": {"a": math.nan}, "velocity": {"a": 0.0}},
        {"u": {"a": "0"}, "velocity": {"a": 0.0}},
        {"u": {"a": 0.0}, "velocity": [0.0]},
        {"u": {"a": 0.0}, "velocity": {"a": None}},
    ],
    ids=repr,
)
def test_a_state_of_something_else_is_refused(state: Any) -> None:
    rating = rating_of(Length(label="a"), combination=Constrained({"a": 0.5}))
    with pytest.raises(CheckpointError, match="a state that Constrained does not have"):
        rating.restore(state)


def test_a_constraint_that_cannot_be_met_is_told_once_and_the_run_goes_on() -> None:
    constraint = PidConstrained({"tokens": 5.0}, proportional=100.0)
    rating = rating_of(Correct(label="right"), Length(label="tokens"), combination=constraint)
    batch = batch_of(rating, answers_of(["ab", "abcd", "a"]))
    rating.advance(batch, 0)
    with pytest.warns(
        RewardWarning, match=r"^the constraint on the reward 'tokens' is not met: its mean is 0\.583 and"
    ):
        rating.advance(batch, 1)
    rating.advance(batch, 2)
    assert rating.state["multiplier"]["tokens"] == 10.0
