"""Numbers of groups, computed again by plain loops over the answers."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from tests.support.groups import group_batch
from tests.support.rollouts import rollout_of
from tutelage.advantages import Focal, GroupReward
from tutelage.diagnostics import METRICS
from tutelage.training.group_metrics import advantages_by_difficulty, group_metrics, zero_spread_share
from tutelage.types import Batch

NAMES = ("unsolved", "hard", "easy", "solved")


def bin_of(rewards: list[float]) -> str:
    share = sum(reward > 0 for reward in rewards) / len(rewards)
    return "unsolved" if share == 0 else "solved" if share == 1 else "hard" if share <= 0.5 else "easy"


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def verdicts(num_groups: int, size: int) -> list[list[float]]:
    draw = random.Random(size)
    groups = [[float(draw.random() < place / num_groups) for _ in range(size)] for place in range(num_groups)]
    return [[0.0] * size, [1.0] * size, *groups]


@pytest.mark.parametrize("size", [2, 4, 5])
def test_groups_by_loops(size: int) -> None:
    groups = verdicts(8, size)
    found = group_metrics(group_batch([reward for group in groups for reward in group], group=size))
    expected = {"zero_spread_share": mean([len(set(group)) == 1 for group in groups])}
    expected |= {f"group_share_{name}": mean([bin_of(group) == name for group in groups]) for name in NAMES}
    for k in [k for k in (1, 2, 4) if k <= size]:
        tries = [[any(chosen) for chosen in itertools.combinations(group, k)] for group in groups]
        expected[f"train_pass_at_{k}"] = mean([mean(each) for each in tries])
    assert found == pytest.approx(expected, abs=1e-12)
    assert set(found) <= set(METRICS)


def test_advantages_by_difficulty_by_loops() -> None:
    """F-GRPO's factor shows: groups that are mostly solved count less. Every token counts."""
    groups, lengths = verdicts(8, 4), [1 + place % 3 for place in range(40)]
    batch = group_batch([reward for group in groups for reward in group], lengths, group=4)
    nothing_N = torch.zeros(batch.num_tokens, dtype=torch.float64)
    plain_N, focal_N = (each(batch, nothing_N) for each in (GroupReward(), Focal(gamma=1.0)))
    for advantages_N in (plain_N, focal_N):
        by_name: dict[str, list[float]] = {}
        for place, advantages_T in enumerate(torch.split(advantages_N, lengths)):
            by_name.setdefault(bin_of(groups[place // 4]), []).extend(map(abs, advantages_T.tolist()))
        expected = {f"advantage_{name}": mean(values) for name, values in by_name.items()}
        assert advantages_by_difficulty(batch, advantages_N) == pytest.approx(expected, abs=1e-12)
    plain, focal = (advantages_by_difficulty(batch, each_N) for each_N in (plain_N, focal_N))
    assert plain["advantage_unsolved"] == 0 < focal["advantage_easy"] / plain["advantage_easy"] < 0.5
    assert focal["advantage_hard"] / plain["advantage_hard"] >= 0.5


def test_the_spread_is_that_of_the_combined_reward() -> None:
    batch = group_batch([0.0, 0.0, 1.0, 1.0], group=2)
    rewards = {"reward": torch.tensor([0.1, 0.2, 1.0, 1.0]), "correct": batch.rewards["correct"]}
    assert group_metrics(Batch(batch.rollouts, rewards))["zero_spread_share"] == 0.5
    assert "zero_spread_share" not in group_metrics(Batch(batch.rollouts, {"correct": rewards["correct"]}))
    assert group_metrics(Batch(batch.rollouts, {"reward": rewards["reward"]})) == {"zero_spread_share": 0.5}


def test_what_has_no_group_has_no_number() -> None:
    alone = group_batch([1.0, 0.0], group=1)
    assert group_metrics(alone) == {} and zero_spread_share(alone, alone.rewards["reward"]) is None
    assert group_metrics(Batch(alone.rollouts)) == {}
    assert advantages_by_difficulty(Batch(alone.rollouts), torch.ones(2)) == {}


def test_groups_may_differ_in_size_and_a_prompt_may_have_none() -> None:
    one_T = torch.tensor([-1.0])
    places = [0, 0, 0, 2, 4, 4]
    made = [rollout_of([0], [1], one_T, one_T, prompt_index=prompt) for prompt in places]
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0, 0.0])
    found = group_metrics(Batch(made, {"reward": rewards, "correct": rewards}))
    assert found["zero_spread_share"] == 0.5 and found["group_share_unsolved"] == 0.5
    assert found["train_pass_at_1"] == pytest.approx((1 / 3 + 0) / 2)
    assert found["train_pass_at_2"] == pytest.approx((2 / 3 + 0) / 2) and "train_pass_at_4" not in found
