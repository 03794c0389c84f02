"""What every reward and every combination keeps. A new member joins by a line in one of the lists of members."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.quick_run import metrics_of
from tests.support.rated_answers import HOSTILE, answers_of
from tests.support.reward_models import save_reward_model
from tests.support.tiny_run import write_run_file
from tutelage.errors import ConfigurationError
from tutelage.rewards import (
    COMBINATIONS,
    REWARDS,
    Answers,
    Combination,
    Correct,
    Format,
    Function,
    Judge,
    Length,
    Overlong,
    Ratings,
    Reward,
    RewardModel,
    RewardWarning,
    Setting,
)
from tutelage.rewards.combinations import (
    ConflictAverse,
    Constrained,
    GradientInfluence,
    Hypervolume,
    LowerConfidenceBound,
    MinNorm,
    NormalisedSum,
    PidConstrained,
    Progress,
    WeightedSum,
    WorstCase,
)
from tutelage.schedules import Linear

SETTING = Setting("cpu", max_new_tokens=64)
PLACE = "a reward model's folder"

REWARD_MEMBERS: list[Reward] = [
    Correct(),
    Length(),
    Length(7),
    Overlong(),
    Overlong(20, 4),
    Format("<think>.*"),
    Format("(a+)+b", timeout_seconds=0.2),
    Function("tests.support.reward_functions:vowels"),
    RewardModel(PLACE),
    RewardModel(PLACE, use_chat_template=False, max_batch_tokens=100),
]

COMBINATION_MEMBERS: list[Combination] = [
    WeightedSum(),
    NormalisedSum(),
    WorstCase(),
    WorstCase(normalised=True),
    LowerConfidenceBound(),
    LowerConfidenceBound(0.1, "variance", normalised=True),
    Constrained({"b": 0.5}),
    Constrained({"a": 0.1, "b": 0.5}, normalised=True, squash="tanh"),
    PidConstrained({"b": 0.5}, smoothing=0.9),
    Progress(window=2),
    Hypervolume(),
    GradientInfluence(),
    ConflictAverse(),
    ConflictAverse(0.9, clipped=False, measured_every=3),
    MinNorm(),
    MinNorm(positive_only=False),
]

every_reward = pytest.mark.parametrize("reward", REWARD_MEMBERS, ids=repr, indirect=True)
every_combination = pytest.mark.parametrize("combination", COMBINATION_MEMBERS, ids=repr)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_reward_model(tmp_path_factory.mktemp("models") / "rm")


@pytest.fixture
def reward(request: pytest.FixtureRequest, folder: Path) -> Reward:
    member: Reward = request.param
    return dataclasses.replace(member, path=str(folder)) if isinstance(member, RewardModel) else member


def test_every_member_is_here() -> None:
    assert {type(reward) for reward in REWARD_MEMBERS} == set(REWARDS.values())
    assert {type(combination) for combination in COMBINATION_MEMBERS} == set(COMBINATIONS.values())


# --- rewards ---------------------------------------------------------------------------------------------------------


@pytest.mark.sweeps
@pytest.mark.filterwarnings(f"ignore::{RewardWarning.__module__}.RewardWarning")
@every_reward
def test_any_text_has_one_finite_number(reward: Reward) -> None:
    values_B = reward.opened(SETTING)(answers_of(HOSTILE))
    assert values_B.shape == (len(HOSTILE),) and values_B.dtype == torch.float64 and values_B.device.type == "cpu"
    assert bool(values_B.isfinite().all())


@pytest.mark.sweeps
@pytest.mark.filterwarnings(f"ignore::{RewardWarning.__module__}.RewardWarning")
@every_reward
def test_an_answer_is_judged_alone_as_among_others_and_again_alike(reward: Reward) -> None:
    judge, texts = reward.opened(SETTING), [*HOSTILE, "one", "the other"]
    answers = answers_of(texts)
    together = judge(answers)
    torch.testing.assert_close(judge(answers), together, rtol=0, atol=0)
    for place in range(len(texts)):
        alone = dataclasses.replace(
            answers,
            rollouts=answers.rollouts[place : place + 1],
            problems=answers.problems[place : place + 1],
            responses=answers.responses[place : place + 1],
            correct=None if answers.correct is None else answers.correct[place : place + 1],
        )
        torch.testing.assert_close(judge(alone), together[place : place + 1], rtol=1e-5, atol=1e-5)


@every_reward
def test_a_weight_may_move_and_a_reward_is_frozen(reward: Reward) -> None:
    moving = dataclasses.replace(reward, weight=Linear(1.0, 0.0, 2), label="mine")
    assert [moving.at(step).weight for step in range(3)] == [1.0, 0.5, 0.0] and moving.at(1).label == "mine"
    with pytest.raises(dataclasses.FrozenInstanceError):
        reward.label = "other"  # type: ignore[misc]
    for weight in (math.nan, math.inf):
        with pytest.raises(ConfigurationError, match=r"reward\.weight is .*; expected a finite number"):
            dataclasses.replace(reward, weight=weight)
    for label in ("with space", "a/b", "x" * 61):
        with pytest.raises(ConfigurationError, match=r"reward\.label is .*; expected letters, digits"):
            dataclasses.replace(reward, label=label)


@every_reward
def test_what_it_reads_is_json(reward: Reward) -> None:
    found = reward.check(SETTING)
    assert json.loads(json.dumps(found)) == found


# --- combinations ----------------------------------------------------------------------------------------------------


def rated(seed: int, groups: list[int] | None = None) -> Ratings:
    values = torch.randn(2, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rewards, weights = {"a": values[0], "b": values[1]}, {"a": 1.0, "b": 0.5}
    return Ratings(rewards, weights, torch.tensor(groups or [0, 0, 0, 1, 1, 2]), gram_KK=values @ values.T)


@every_combination
def test_combines_into_one_finite_number_for_each(combination: Combination) -> None:
    combination.check(["a", "b"])
    state = combination.initial_state(["a", "b"])
    for seed in range(6):
        found = combination.combine(rated(seed), state)
        assert found.shape == (6,) and found.dtype == torch.float64 and bool(found.isfinite().all())
        assert all(math.isfinite(value) for value in combination.metrics(rated(seed), state).values())
        state = combination.next_state(rated(seed), state)


@every_combination
def test_a_state_goes_through_json_and_is_not_changed_in_place(combination: Combination) -> None:
    state = kept = combination.initial_state(["a", "b"])
    for seed in range(6):
        before = json.dumps(state)
        kept = combination.next_state(rated(seed), json.loads(json.dumps(kept)))
        after = combination.next_state(rated(seed), state)
        assert json.dumps(state) == before and json.dumps(after) == json.dumps(kept)
        state = after
        assert torch.equal(combination.combine(rated(9), state), combination.combine(rated(9), kept))


@every_combination
def test_the_order_of_answers_changes_nothing_but_their_order(combination: Combination) -> None:
    one, order = rated(3), torch.tensor([5, 0, 3, 1, 4, 2])
    rewards = {name: values[order] for name, values in one.rewards.items()}
    other = dataclasses.replace(one, rewards=rewards, groups_B=one.groups_B[order])
    state = combination.initial_state(one.labels)
    torch.testing.assert_close(combination.combine(other, state), combination.combine(one, state)[order])


@pytest.mark.parametrize(
    "combination", [each for each in COMBINATION_MEMBERS if getattr(each, "penalty", "") != "variance"], ids=repr
)
def test_a_better_answer_is_not_worth_less(combination: Combination) -> None:
    """In every respect at once, and in one step; a bound with a variance may fall as a member rises."""
    one = rated(4, [0] * 6)
    higher = {name: values.clone().index_fill_(0, torch.tensor([2]), 9.0) for name, values in one.rewards.items()}
    state = combination.initial_state(one.labels)
    before = combination.combine(one, state)
    after = combination.combine(dataclasses.replace(one, rewards=higher), state)
    assert after[2] >= before[2] and after[2] == after.max()


# --- members of one's own --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Vowels(Reward):
    """Share of vowels."""

    letters: str = "aeiou"

    def opened(self, setting: Setting) -> Judge:
        def judge(answers: Answers) -> Tensor:
            counts = [sum(letter in self.letters for letter in text) for text in answers.responses]
            return torch.tensor(counts, dtype=torch.float64) / setting.max_new_tokens

        return judge


@dataclass(frozen=True)
class Product(Combination):
    """r = Π r_i."""

    def combine(self, ratings: Ratings, state: Any) -> Tensor:
        return torch.stack(list(ratings.rewards.values())).prod(0)


@pytest.mark.runs
def test_members_of_ones_own_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REWARDS, "vowels", Vowels)
    monkeypatch.setitem(COMBINATIONS, "product", Product)
    tables = """
    reward_combination = "product"
    [[reward]]
    name = "vowels"
    letters = "xyz"
    [[reward]]
    name = "length"
    """
    path = write_run_file(tmp_path, steps=2)
    path.write_text(tables.partition("[[")[0] + path.read_text() + "[[" + tables.partition("[[")[2])
    for record in metrics_of(path, tmp_path / "run"):
        assert 0 <= record["reward/vowels"] <= 1 and 0 < record["reward/length"] <= 1
        assert 0 <= record["reward"] <= record["reward/vowels"]
