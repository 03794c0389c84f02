"""Advantages that are made from rewards: worked numbers of the methods, and what must hold for any rewards."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.support.groups import group_batch
from tutelage.advantages import (
    Advantage,
    Focal,
    GroupReward,
    Sum,
    TeacherLogRatio,
    TeacherWeighted,
    WhitenedReturn,
)
from tutelage.errors import ConfigurationError
from tutelage.schedules import Linear
from tutelage.types import Batch, Fact

REWARDS = [1.0, 0, 0, 1, 1, 0, 0, 0]


def values_of(advantage: Advantage, batch: Batch, target: list[float] | None = None) -> Tensor:
    known = torch.full((batch.num_tokens,), math.nan) if target is None else torch.tensor(target)
    return advantage(batch, known.double())


@pytest.mark.parametrize(
    ("advantage", "right", "wrong"),
    [
        (GroupReward(), 1.2074, -0.7244),
        (GroupReward(scale="none"), 0.625, -0.375),
        (GroupReward(baseline="leave_one_out", scale="none"), 0.7143, -0.4286),
        (GroupReward(baseline="none", scale="none"), 1.0, 0.0),
        (GroupReward(scale="batch", epsilon=0.0), 0.625 / 0.5175492, -0.375 / 0.5175492),
    ],
    ids=repr,
)
def test_numbers_by_hand(advantage: Advantage, right: float, wrong: float) -> None:
    expected = torch.tensor([right if reward else wrong for reward in REWARDS]).double()
    torch.testing.assert_close(values_of(advantage, group_batch(REWARDS)), expected, atol=4e-4, rtol=0)


def test_each_token_has_the_worth_of_its_answer() -> None:
    batch = group_batch([1.0, 0.0, 2.0], lengths=[2, 0, 3])
    assert values_of(GroupReward(scale="none"), batch).tolist() == [0, 0, 1, 1, 1]


def test_groups_are_compared_with_themselves_only() -> None:
    batch = group_batch([1.0, 0.0, 5.0, 3.0], group=2)
    assert values_of(GroupReward(scale="none"), batch).tolist() == [0.5, -0.5, 1, -1]
    assert values_of(GroupReward(epsilon=0.0), batch).tolist() == pytest.approx([0.5**0.5, -(0.5**0.5)] * 2)
    both = values_of(GroupReward(scale="batch", epsilon=0.0), batch)
    assert both.tolist() == pytest.approx([value / 2.217356 for value in (0.5, -0.5, 1, -1)], rel=1e-6)


every_group_form = pytest.mark.parametrize(
    "advantage",
    [
        GroupReward(b, s, e)
        for b in ("group_mean", "leave_one_out")
        for s in ("group", "batch", "none")
        for e in (0, 1e-4)
    ],
    ids=repr,
)


@pytest.mark.sweeps
@every_group_form
@given(rewards=st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=9))
def test_a_group_sums_to_nothing_and_without_spread_is_nothing(advantage: Advantage, rewards: list[float]) -> None:
    values = values_of(advantage, group_batch(rewards))
    assert values.isfinite().all() and float(values.sum()) == pytest.approx(0, abs=1e-6 * float(values.abs().max() + 1))
    assert values_of(advantage, group_batch([rewards[0]] * len(rewards))).tolist() == pytest.approx(
        [0.0] * len(rewards)
    )


def share_missing_the_rare(right: float, rare: float, size: int) -> float:
    """How often a group teaches something and holds no rare right answer, by all its compositions."""
    share = 0.0
    for num_common in range(size + 1):
        wrong = size - num_common
        if bool((values_of(GroupReward(), group_batch([1.0] * num_common + [0.0] * wrong)) != 0).any()):
            share += math.comb(size, num_common) * (right - rare) ** num_common * (1 - right) ** wrong
    return share


@pytest.mark.parametrize(
    ("right", "rare", "size", "expected"),
    [(0.5, 0.05, 2, 0.4500), (0.5, 0.05, 8, 0.6578), (0.5, 0.05, 32, 0.1937), (0.5, 0.005, 8, 0.9532)],
)
def test_how_often_groups_teach_without_a_rare_right_answer(
    right: float, rare: float, size: int, expected: float
) -> None:
    """F-GRPO's lemma 3.1: (1 - tau)^N - (mu - tau)^N - (1 - mu)^N; most for groups of middle size."""
    found = share_missing_the_rare(right, rare, size)
    assert found == pytest.approx((1 - rare) ** size - (right - rare) ** size - (1 - right) ** size)
    assert found == pytest.approx(expected, abs=1e-4)
    assert share_missing_the_rare(right, rare, 1) == 0 == share_missing_the_rare(right, right, size)
    largest = {0.05: 5, 0.005: 8}[rare]
    assert max(range(1, 40), key=lambda number: share_missing_the_rare(right, rare, number)) == largest


@pytest.mark.parametrize(("gamma", "factor"), [(0.5, 0.3536), (1.0, 0.125), (2.0, 0.0156), (0.0, 1.0)])
def test_focal_scaling_by_hand(gamma: float, factor: float) -> None:
    """Seven of eight are right: 0.378 and -2.646 with the population's deviation, so 0.3536 and -2.4749 here."""
    batch = group_batch([1.0] * 7 + [0.0])
    base = values_of(GroupReward(epsilon=0.0), batch)
    assert base[0].item() == pytest.approx(0.378 * (7 / 8) ** 0.5, abs=1e-3)
    scaled = values_of(Focal(GroupReward(epsilon=0.0), gamma), batch)
    torch.testing.assert_close(scaled, factor * base, atol=1e-3, rtol=1e-3)
    assert float(scaled.sum()) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("rewards", [[0.0] * 4, [1.0] * 4])
def test_groups_that_are_all_right_or_all_wrong_teach_nothing(gamma: float, rewards: list[float]) -> None:
    assert values_of(Focal(gamma=gamma), group_batch(rewards)).tolist() == [0.0] * 4


def test_focal_scaling_reads_the_two_values_of_its_reward() -> None:
    by_sign = group_batch([-1.0, 1.0, 1.0, 1.0])
    by_share = group_batch([0.0, 1.0, 1.0, 1.0])
    scaled = Focal(GroupReward(epsilon=0.0), gamma=1.0, wrong=-1.0)
    expected = values_of(Focal(GroupReward(epsilon=0.0), gamma=1.0), by_share)
    torch.testing.assert_close(values_of(scaled, by_sign), expected)


def test_a_sum_adds_its_terms_with_their_coefficients() -> None:
    batch = group_batch([1.0, 0.0], lengths=[1, 2])
    target = [-0.5, -1.5, -math.inf]
    added = Sum((GroupReward(scale="none"), TeacherLogRatio()), (2.0, 0.1))
    assert values_of(added, batch, target).tolist() == pytest.approx([1.05, -1.05, -math.inf])
    assert values_of(Sum((GroupReward(scale="none"), TeacherLogRatio()), (2.0, 0.0)), batch, target).tolist() == [
        1,
        -1,
        -1,
    ]
    assert values_of(Sum((TeacherLogRatio(),)), batch, target).tolist() == [0.5, -0.5, -math.inf]
    moving = Sum((GroupReward(), Focal(gamma=Linear(1.0, 0.0, 2))), (1.0, Linear(4.0, 0.0, 4)))
    assert moving.at(1) == Sum((GroupReward(), Focal(gamma=0.5)), (1.0, 3.0))
    assert moving.needs == {Fact.reward, Fact.group} and moving.min_samples_per_prompt == 2


def test_kdrl_masks() -> None:
    """The teacher speaks of wrong answers only, or only where no answer to the prompt is right."""
    batch = group_batch([1.0, 0.0, 0.0, 0.0], group=2)
    target = [-0.5, -0.5, -2.0, -0.25]
    assert values_of(TeacherLogRatio(answers="wrong"), batch, target).tolist() == [0, 0.5, -1, 0.75]
    assert values_of(TeacherLogRatio(answers="failed_groups"), batch, target).tolist() == [0, 0, -1, 0.75]


@pytest.mark.parametrize(
    ("reward", "log_ratio", "expected"),
    [(1.0, 0.5, 1.10), (1.0, -0.5, 0.90), (1.0, 0.1, 1.0526), (-1.0, 0.5, -0.90), (-1.0, -0.5, -1.10), (0.0, 9.0, 0.0)],
)
def test_the_teacher_weighs_and_never_turns(reward: float, log_ratio: float, expected: float) -> None:
    plain = GroupReward("none", "none")
    found = values_of(TeacherWeighted(plain), group_batch([reward]), [log_ratio - 1.0])
    assert found.item() == pytest.approx(expected, abs=1e-4)
    only_negative = values_of(TeacherWeighted(plain, only_negative=True), group_batch([reward]), [log_ratio - 1.0])
    assert only_negative.item() == pytest.approx(reward if reward > 0 else expected, abs=1e-4)
    assert values_of(TeacherWeighted(plain, share=0.0), group_batch([reward]), [log_ratio - 1.0]).item() == reward


@pytest.mark.parametrize("target", [-math.inf, -1.0, 0.0])
def test_an_advantage_of_0_stays_0_whatever_the_teacher_says(target: float) -> None:
    """As every token of a group without spread has."""
    found = values_of(TeacherWeighted(GroupReward()), group_batch([1.0, 1.0], group=2), [target, target])
    assert found.tolist() == [0, 0]


def test_whitened_returns() -> None:
    batch = group_batch([1.0, -1.0], lengths=[2, 2])
    assert values_of(WhitenedReturn(epsilon=0.0), batch).tolist() == pytest.approx(
        [3**0.5 / 2] * 2 + [-(3**0.5) / 2] * 2
    )
    discounted = values_of(WhitenedReturn(discount=0.5, epsilon=0.0), batch)
    returns = torch.tensor([0.5, 1.0, -0.5, -1.0]).double()
    torch.testing.assert_close(discounted, returns / returns.std())
    assert values_of(WhitenedReturn(), group_batch([1.0, 1.0])).tolist() == [0, 0]
    grouped = values_of(WhitenedReturn(baseline="group_mean", epsilon=0.0), group_batch([3.0, 1.0, 1.0, 1.0], group=2))
    centred = torch.tensor([1.0, -1.0, 0.0, 0.0]).double()
    torch.testing.assert_close(grouped, centred / centred.std())


def test_a_whitened_return_pays_for_the_way_from_the_reference() -> None:
    batch = group_batch([1.0], lengths=[2], student=[-1.0, -2.0])
    drift = torch.tensor([0.5, -1.0]).double()
    read = batch.rollouts[0].with_tokenwise({"reference.logprobs_T": torch.tensor([-1.0, -2.0]).double() - drift})
    found = values_of(WhitenedReturn(kl_coefficient=0.1, epsilon=0.0), Batch([read], batch.rewards))
    returns = torch.tensor([-0.05 + 1.1, 1.1]).double()
    torch.testing.assert_close(found, (returns - returns.mean()) / returns.std())


@pytest.mark.parametrize(
    ("member", "fields", "message"),
    [
        (GroupReward, {"baseline": "median"}, r"advantage\.baseline is 'median'; expected one of group_mean"),
        (GroupReward, {"scale": "all"}, r"advantage\.scale is 'all'; expected one of group, batch, none"),
        (GroupReward, {"epsilon": -1}, r"advantage\.epsilon is -1"),
        (Focal, {"gamma": -0.5}, r"advantage\.gamma is -0\.5; expected a finite number of at least 0"),
        (Focal, {"gamma": Linear(1.0, -1.0, 3)}, r"advantage\.gamma is -1"),
        (Focal, {"right": 0.0}, r"advantage\.right is 0; expected more than advantage\.wrong = 0"),
        (Sum, {"terms": ()}, r"advantage\.terms is empty"),
        (Sum, {"terms": (GroupReward(),), "coefficients": (1.0, 2.0)}, r"has 2 numbers for 1 terms"),
        (Sum, {"terms": (GroupReward(),), "coefficients": (math.inf,)}, r"advantage\.coefficients\[0\] is inf"),
        (TeacherWeighted, {"share": 2.0}, r"advantage\.share is 2"),
        (TeacherWeighted, {"epsilon": 1.0}, r"advantage\.epsilon is 1"),
        (TeacherLogRatio, {"answers": "right"}, r"advantage\.answers is 'right'; expected one of all, wrong"),
        (WhitenedReturn, {"discount": 1.5}, r"advantage\.discount is 1\.5"),
        (WhitenedReturn, {"baseline": "mean"}, r"advantage\.baseline is 'mean'"),
        (WhitenedReturn, {"kl_coefficient": math.nan}, r"advantage\.kl_coefficient is nan"),
    ],
)
def test_impossible_fields_are_refused(member: type[Advantage], fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        member(**fields)


def test_a_reward_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"reads the reward 'style', which .* known: reward, correct\."):
        values_of(GroupReward(reward="style"), group_batch([1.0, 0.0]))
