"""The facts that the sources state, and what follows from the formulas, for every combination."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tutelage.errors import ConfigurationError
from tutelage.rewards.combinations import (
    Combination,
    Constrained,
    Hypervolume,
    LowerConfidenceBound,
    NormalisedSum,
    PidConstrained,
    Progress,
    Ratings,
    WeightedSum,
    WorstCase,
    hypervolume,
    normalised_in_groups,
)
from tutelage.rewards.combinations.base import State
from tutelage.schedules import Linear

GROUPS = torch.tensor([0] * 8)


def ratings(groups: Tensor | None = None, weights: dict[str, float] | None = None, **rewards: Any) -> Ratings:
    """Rewards by label as lists; weights are 1 where none are given."""
    tensors = {label: torch.tensor(values, dtype=torch.float64) for label, values in rewards.items()}
    size = len(next(iter(tensors.values())))
    return Ratings(
        tensors, dict.fromkeys(tensors, 1.0) | (weights or {}), torch.zeros(size) if groups is None else groups
    )


def combined(combination: Combination, rated: Ratings) -> list[float]:
    state = combination.initial_state(rated.labels)
    values: list[float] = combination.combine(rated, state).tolist()
    return values


def states(combination: Combination, batches: list[Ratings]) -> list[State]:
    """The state before each batch, and after the last one."""
    found = [combination.initial_state(batches[0].labels)]
    for rated in batches:
        found.append(combination.next_state(rated, found[-1]))
    return found


# --- sums ------------------------------------------------------------------------------------------------------------


def test_a_weighted_sum_is_one() -> None:
    rated = ratings(a=[1, 2], b=[10, 20], weights={"b": -0.5})
    assert combined(WeightedSum(), rated) == [-4, -8]


def test_normalised_groups_are_those_of_grpo() -> None:
    """R = (1,0,0,1,1,0,0,0): mean .375, sample deviation .5175."""
    rewards = torch.tensor([1, 0, 0, 1, 1, 0, 0, 0], dtype=torch.float64)
    found = normalised_in_groups(rewards, GROUPS)
    assert found[0] == pytest.approx(1.2074, abs=3e-4) and found[1] == pytest.approx(-0.7244, abs=3e-4)
    assert normalised_in_groups(torch.ones(8, dtype=torch.float64), GROUPS).tolist() == [0.0] * 8


def test_groups_are_normalised_apart_and_one_alone_is_0() -> None:
    groups, rewards = torch.tensor([7, 3, 7, 3, 5]), torch.tensor([0.0, 10.0, 1.0, 30.0, 4.0]).double()
    found = normalised_in_groups(rewards, groups)
    torch.testing.assert_close(found[[0, 2]], normalised_in_groups(rewards[[0, 2]], groups[[0, 2]]))
    assert found[4] == 0 and found[3] == pytest.approx(10 / (math.sqrt(200) + 1e-4))


def test_a_normalised_sum_does_not_depend_on_the_scale_of_a_reward() -> None:
    small = ratings(a=[1, 2, 4], b=[3, 2, 1])
    large = ratings(a=[1000, 2000, 4000], b=[3, 2, 1])
    assert combined(NormalisedSum(), small) == pytest.approx(combined(NormalisedSum(), large), rel=1e-3)
    assert combined(WeightedSum(), small) != pytest.approx(combined(WeightedSum(), large), rel=0.5)


# --- ensembles -------------------------------------------------------------------------------------------------------

ENSEMBLE = [WorstCase(), LowerConfidenceBound(2.0), LowerConfidenceBound(0.7, penalty="variance")]


@pytest.mark.parametrize("combination", ENSEMBLE, ids=repr)
def test_one_member_and_equal_members_are_their_mean(combination: Combination) -> None:
    assert combined(combination, ratings(a=[1, -2])) == [1, -2]
    assert combined(combination, ratings(a=[1, -2], b=[1, -2], c=[1, -2])) == [1, -2]


@pytest.mark.parametrize("combination", ENSEMBLE, ids=repr)
def test_the_order_of_the_members_does_not_matter(combination: Combination) -> None:
    one, other = ratings(a=[1, 5], b=[2, 3], c=[4, 0]), ratings(c=[4, 0], a=[1, 5], b=[2, 3])
    assert combined(combination, one) == pytest.approx(combined(combination, other))


def test_caution_never_exceeds_the_mean() -> None:
    rated = ratings(a=[1, 5, 2], b=[2, 3, 2], c=[6, 1, 2])
    mean = [3, 3, 2]
    assert combined(LowerConfidenceBound(0.0), rated) == mean
    assert combined(WorstCase(), rated) == [1, 1, 2]
    for combination in ENSEMBLE:
        assert all(value <= limit for value, limit in zip(combined(combination, rated), mean, strict=True))


def test_the_variance_is_that_of_the_population() -> None:
    rated = ratings(a=[1], b=[3])
    assert combined(LowerConfidenceBound(0.1, penalty="variance"), rated) == pytest.approx([2 - 0.1 * 1])
    assert combined(LowerConfidenceBound(0.5), rated) == pytest.approx([2 - 0.5 * 1])


def test_with_the_variance_a_better_best_member_may_lower_the_bound() -> None:
    """Where 2 c (x_i - mean) > 1."""
    uwo = LowerConfidenceBound(1.0, penalty="variance")
    (before,), (after,) = (combined(uwo, ratings(a=[0], b=[value])) for value in (2, 3))
    assert 2 * 1.0 * (2 - 1) > 1 and after < before
    (before,), (after,) = (combined(uwo, ratings(a=[0], b=[value])) for value in (0.1, 0.2))
    assert after > before


def test_the_scale_of_a_member_changes_the_worst_case_unless_it_is_normalised() -> None:
    one, other = ratings(a=[1, 2], b=[2, 1]), ratings(a=[10, 20], b=[2, 1])
    assert combined(WorstCase(), one) != combined(WorstCase(), other)
    both = [combined(WorstCase(normalised=True), each) for each in (one, other)]
    assert both[0] == pytest.approx(both[1], rel=1e-3)


def test_a_bound_takes_a_schedule() -> None:
    moving = LowerConfidenceBound(Linear(0.0, 1.0, 2))
    assert [moving.at(step).coefficient for step in range(3)] == [0.0, 0.5, 1.0]
    with pytest.raises(ConfigurationError, match="changes with the step"):
        combined(moving, ratings(a=[1]))


# --- constraints -----------------------------------------------------------------------------------------------------


def test_one_constraint_weighs_the_objective_and_itself() -> None:
    """N = 1: weights (1 - l, l), which begin at a half."""
    combination = Constrained({"b": 0.5})
    rated = ratings(a=[1, 0], b=[0, 1])
    assert combined(combination, rated) == [0.5, 0.5]
    state = {"u": {"b": 2.0}, "velocity": {"b": 0.0}}
    share = 1 / (1 + math.exp(-2.0))
    assert combination.combine(rated, state).tolist() == pytest.approx([1 - share, share])


@pytest.mark.parametrize("squash", ["sigmoid", "tanh"])
def test_a_learned_multiplier_that_is_as_large_as_it_becomes_is_told(squash: str) -> None:
    combination, hopeless = Constrained({"b": 1.0}, squash=squash, learning_rate=5.0), ratings(a=[0], b=[0])
    after = states(combination, [hopeless] * 200)
    told = [bool(combination.unmet(hopeless, state)) for state in after]
    assert told == sorted(told) and not told[0] and told[-1], "from some step on"
    assert combination.unmet(ratings(a=[0], b=[1]), after[-1]) == {}


def test_a_threshold_that_is_met_exactly_moves_nothing() -> None:
    combination = Constrained({"b": 0.5})
    for state in states(combination, [ratings(a=[9, 9], b=[0, 1])] * 3):
        assert state["u"] == {"b": 0.0}


@pytest.mark.parametrize(("squash", "limit"), [("sigmoid", 0.0), ("tanh", -1.0)])
def test_a_constraint_met_for_long_is_let_go(squash: str, limit: float) -> None:
    """The sigmoid's multiplier goes to 0; the tanh's to -1, and the objective counts double."""
    combination = Constrained({"b": 0.0}, squash=squash, learning_rate=5.0)
    last = states(combination, [ratings(a=[0], b=[1])] * 400)[-1]
    (multiplier,) = combination.multipliers(last).values()
    assert multiplier == pytest.approx(limit, abs=0.02)
    expected = 2.0 if squash == "tanh" else 1.0
    assert combination.combine(ratings(a=[1], b=[0]), last).item() == pytest.approx(expected, abs=0.05)


def test_a_multiplier_follows_its_gradient() -> None:
    combination = Constrained({"b": 0.5}, learning_rate=0.1, momentum=0.1)
    first, second = (ratings(a=[0], b=[value]) for value in (0.1, 0.3))
    _, after, last = states(combination, [first, second])
    velocity = 0.25 * (0.1 - 0.5)
    assert after["u"]["b"] == pytest.approx(-0.1 * velocity)
    squashed = 1 / (1 + math.exp(-after["u"]["b"]))
    velocity = 0.1 * velocity + squashed * (1 - squashed) * (0.3 - 0.5)
    assert last["u"]["b"] == pytest.approx(after["u"]["b"] - 0.1 * velocity)


def test_a_cost_is_kept_below_its_threshold() -> None:
    combination, weights = Constrained({"tokens": 0.5}), {"tokens": -1.0}
    rising, falling = (
        states(combination, [ratings(a=[0], tokens=[value], weights=weights)])[-1]["u"]["tokens"]
        for value in (0.9, 0.1)
    )
    assert rising > 0 > falling
    rated = ratings(a=[0], tokens=[0.9], weights=weights)
    assert combination.metrics(rated, combination.initial_state(rated.labels)) == {
        "reward_multiplier/tokens": 0.5,
        "reward_slack/tokens": pytest.approx(-0.4),
    }


def test_a_controller_adds_up_what_stooke_et_al_add_up() -> None:
    combination = PidConstrained({"b": 1.0}, proportional=0.5, integral=0.25, derivative=2.0)
    batches = [ratings(a=[0], b=[value]) for value in (0.6, 0.2, 2.0)]
    _, one, two, three = states(combination, batches)
    assert one["multiplier"]["b"] == pytest.approx(0.5 * 0.4 + 0.25 * 0.4 + 0)
    assert two["multiplier"]["b"] == pytest.approx(0.5 * 0.8 + 0.25 * 1.2 + 2.0 * 0.4)
    assert three["multiplier"]["b"] == 0 and three["integral"]["b"] == pytest.approx(0.2)
    mixed = combination.combine(ratings(a=[1], b=[3]), one).item()
    multiplier = one["multiplier"]["b"]
    assert mixed == pytest.approx((1 + multiplier * 3) / (1 + multiplier))


def test_a_smoothed_controller_lags() -> None:
    combination = PidConstrained({"b": 1.0}, proportional=1.0, integral=0.0, derivative=0.0, smoothing=0.5)
    _, one, two = states(combination, [ratings(a=[0], b=[value]) for value in (0.0, 1.0)])
    assert (one["multiplier"]["b"], two["multiplier"]["b"]) == (1.0, 0.5)


def test_a_constraint_that_cannot_be_met_is_seen_and_bounded() -> None:
    combination = PidConstrained({"b": 1.0}, max_multiplier=3.0)
    hopeless = ratings(a=[0], b=[0])
    last = states(combination, [hopeless] * 500)[-1]
    assert combination.metrics(hopeless, last) == {"reward_multiplier/b": 3.0, "reward_slack/b": -1.0}
    (text,) = combination.unmet(hopeless, last).values()
    assert text.startswith(
        "the constraint on the reward 'b' is not met: its mean is 0 and its threshold 1, under a multip"
    )
    met = ratings(a=[0], b=[2])
    assert combination.unmet(met, last) == {} == combination.unmet(hopeless, combination.initial_state(["a", "b"]))
    later = combination.next_state(met, last)
    for _ in range(40):  # the integral was bounded, so it winds down in time
        later = combination.next_state(met, later)
    assert later["multiplier"]["b"] == 0


@pytest.mark.parametrize("member", [Constrained, PidConstrained])
def test_thresholds_are_of_rewards_that_are_there(member: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"thresholds has 'c', and the rewards are a, b; expected labels"):
        member({"c": 1.0}).check(["a", "b"])
    for wrong in ({}, {"b": math.nan}, {"b": "much"}, 3.0):
        with pytest.raises(ConfigurationError, match=r"reward_combination\.thresholds is .*; expected a finite number"):
            member(wrong)


# --- progress --------------------------------------------------------------------------------------------------------


def histories(combination: Progress, **means: list[float]) -> dict[str, float]:
    """The weights after batches with these mean rewards."""
    batches = [
        ratings(**{label: [value] for label, value in zip(means, row, strict=True)})
        for row in zip(*means.values(), strict=True)
    ]
    return combination.weights(states(combination, batches)[-1])


def test_weights_are_1_until_there_is_a_history_and_average_1_after() -> None:
    combination = Progress(window=2)
    assert histories(combination, a=[0.1, 0.2, 0.3], b=[0.5] * 3) == {"a": 1.0, "b": 1.0}
    found = histories(combination, a=[0.1, 0.2, 0.6, 0.7], b=[0.5] * 4)
    assert sum(found.values()) == pytest.approx(2) and found["a"] < 1 < found["b"], "what improves fast counts less"
    assert histories(combination, a=[0.1, 0.9, 0.2, 0.3], b=[0.1, 0.9, 0.2, 0.3]) == pytest.approx({"a": 1, "b": 1})


def test_what_is_steady_counts_less_than_what_swings_with_the_same_progress() -> None:
    found = histories(Progress(window=2), steady=[0.5] * 4, noisy=[0.3, 0.7, 0.3, 0.7])
    assert found["steady"] < 1 < found["noisy"]


def test_a_constant_loss_has_progress_1_and_no_deviation() -> None:
    assert Progress(window=2)._score([0.4] * 4) == 1.0


def test_the_scale_of_the_losses_does_not_matter_and_the_effect_is_mild() -> None:
    combination = Progress(window=2)
    losses = [0.8, 0.6, 0.4, 0.5]
    assert combination._score([3 * loss for loss in losses]) == pytest.approx(combination._score(losses))
    states_of = {"losses": {"a": [1.0, 1.0, 0.5, 0.5], "b": [1.0, 1.0, 1.5, 1.5]}}  # s = 0.5 and 1.5
    found = combination.weights(states_of)
    assert found["b"] / found["a"] == pytest.approx(math.exp(0.2))
    assert Progress(window=2, temperature=1e9).weights(states_of) == pytest.approx({"a": 1, "b": 1})


def test_a_perfect_reward_has_a_history_too() -> None:
    found = histories(Progress(window=1), perfect=[1.0, 1.0], half=[0.5, 0.5])
    assert found == pytest.approx({"perfect": 1, "half": 1})


# --- hypervolume -----------------------------------------------------------------------------------------------------


def test_volumes_are_exact() -> None:
    assert hypervolume([(1.0, 1.0)]) == 1 and hypervolume([]) == 0
    assert hypervolume([(1.0, 1.0), (0.5, 0.5)]) == 1, "a dominated point adds nothing"
    assert hypervolume([(2.0, 1.0), (1.0, 2.0)]) == 3
    assert hypervolume([(2.0, 1.0, 1.0), (1.0, 2.0, 1.0), (1.0, 1.0, 2.0)]) == 4
    assert hypervolume([(-1.0, 5.0)]) == 0


def test_a_volume_is_the_share_of_points_that_are_dominated() -> None:
    points = torch.rand(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = torch.rand(200_000, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    share = (drawn[:, None] <= points).all(-1).any(-1).double().mean().item()
    assert hypervolume([tuple(point) for point in points.tolist()]) == pytest.approx(share, abs=4e-3)


def test_without_progress_rewards_are_halved() -> None:
    """0.5 + 1.5 tanh(dV): the first two steps are as they are, then it depends on the front."""
    batches = [ratings(a=[value], b=[value]) for value in (0.0, 1.0, 1.0)]
    first, second, third, last = [each["factor"] for each in states(Hypervolume(), batches)]
    assert first == second == 1.0
    assert third == pytest.approx(0.5 + 1.5 * math.tanh(1.0)) and last == 0.5


def test_an_advantage_with_a_deviation_takes_the_factor_out() -> None:
    rated = ratings(a=[1, 0, 0, 1, 1, 0, 0, 0])
    one, other = (
        normalised_in_groups(Hypervolume().combine(rated, {"factor": factor}), GROUPS) for factor in (0.5, 1.9)
    )
    torch.testing.assert_close(one, other, atol=5e-4, rtol=0)


# --- fields ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LowerConfidenceBound(-1.0), r"coefficient is -1\.0; expected a finite number of at least 0"),
        (lambda: LowerConfidenceBound(penalty="range"), r"penalty is 'range'; expected 'deviation' or 'variance'"),
        (lambda: Constrained({"a": 1}, squash="exp"), r"squash is 'exp'; expected 'sigmoid' .* or 'tanh'"),
        (lambda: Constrained({"a": 1}, momentum=1.0), r"momentum is 1; expected a number from 0 to below 1"),
        (lambda: PidConstrained({"a": 1}, integral=-0.1), r"integral is -0\.1; expected a finite number of at least 0"),
        (lambda: PidConstrained({"a": 1}, max_multiplier=0), r"max_multiplier is 0; expected a finite number above 0"),
        (lambda: Progress(window=0), r"window is 0; expected 1 step or more"),
        (lambda: Progress(temperature=0.0), r"temperature is 0; expected a finite number above 0"),
        (lambda: WeightedSum().check([]), r"there is no reward to combine"),
    ],
)
def test_refuses_impossible_fields_with_the_reason(make: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make()
