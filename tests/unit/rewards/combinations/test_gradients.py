"""Weights that follow gradients: the facts that the sources state, and minima against a search."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tutelage.errors import ConfigurationError
from tutelage.rewards.combinations import ConflictAverse, GradientInfluence, Ratings, conflict_averse_weights
from tutelage.rewards.combinations.base import State


def rated(gradients_KD: list[list[float]], weights: list[float] | None = None, *, measured: bool = True) -> Ratings:
    """Rewards a, b, c, ... with these gradients, of which the first answer has the first reward alone, and so on."""
    known_KD = wide(gradients_KD)
    number = len(known_KD)
    rewards_KB = torch.eye(number, dtype=torch.float64)
    labels = "abcdef"[:number]
    return Ratings(
        dict(zip(labels, rewards_KB, strict=True)),
        dict(zip(labels, weights or [1.0] * number, strict=True)),
        torch.zeros(number),
        gram_KK=known_KD @ known_KD.T if measured else None,
    )


def wide(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def multipliers_after(combination: GradientInfluence, *batches: Ratings) -> list[float]:
    state = combination.initial_state(batches[0].labels)
    for batch in batches:
        state = combination.next_state(batch, state)
    return list(combination.multipliers(batches[-1], state).values())


# --- influence -------------------------------------------------------------------------------------------------------


def test_it_begins_as_the_weighted_sum() -> None:
    batch, combination = rated([[1, 2], [3, -1]], [2.0, -0.5]), GradientInfluence(1.0)
    assert combination.combine(batch, combination.initial_state(batch.labels)).tolist() == [2.0, -0.5]


@pytest.mark.parametrize("gradients", [[[1, 2], [1, 2]], [[0, 3], [3, 0]], [[1, 1, 0], [0, 1, 1], [1, 0, 1]]])
def test_equal_gradients_and_orthogonal_ones_of_equal_length_move_nothing(gradients: list[list[float]]) -> None:
    batch = rated(gradients, [0.5, 0.3, 0.2][: len(gradients)])
    assert multipliers_after(GradientInfluence(0.7), batch, batch) == pytest.approx([1.0] * len(gradients))


def test_weights_are_those_of_the_formula() -> None:
    """w <- softmax(log w + eta I) from w = (.75, .25): I = (5 + 1, 10 + 1) for g = (2, 1), (-1, 3)."""
    batch, eta = rated([[2, 1], [-1, 3]], [0.75, 0.25]), 0.1
    expected = wide([0.75, 0.25]).log() + eta * torch.tensor([6.0, 11.0])
    weights = expected.softmax(0)
    assert multipliers_after(GradientInfluence(eta), batch) == pytest.approx(
        (weights / torch.tensor([0.75, 0.25])).tolist()
    )
    again = (weights.log() + eta * torch.tensor([6.0, 11.0])).softmax(0)
    assert multipliers_after(GradientInfluence(eta), batch, batch) == pytest.approx(
        (again / torch.tensor([0.75, 0.25])).tolist()
    )


def test_a_reward_against_the_sum_loses_weight() -> None:
    small, large = multipliers_after(GradientInfluence(0.1), rated([[-1, 0], [3, 0]]))
    assert small < 1 < large


def test_weights_stay_inside_the_simplex() -> None:
    """Also under influences that no exponential can hold."""
    batch = rated([[1e6, 0], [0, 1]], [0.5, 0.5])
    found = multipliers_after(GradientInfluence(1.0), *[batch] * 3)
    assert found == [2.0, 0.0] and 0.5 * sum(found) == 1
    gentle = multipliers_after(GradientInfluence(0.01), *[rated([[2, 0], [0, 1]], [0.5, 0.5])] * 50)
    assert 0 < gentle[1] < gentle[0] < 2 and 0.5 * sum(gentle) == pytest.approx(1)


def test_influence_grows_with_the_square_of_a_rewards_scale_where_it_stands_alone() -> None:
    def gap(scale: float) -> float:
        one, other = multipliers_after(GradientInfluence(0.01), rated([[scale, 0], [0, 1]]))
        return math.log(one / other)

    assert gap(3) == pytest.approx(0.01 * (9 - 1)) and gap(5) == pytest.approx(0.01 * (25 - 1))


def test_what_is_not_measured_moves_nothing() -> None:
    combination, batch = GradientInfluence(measured_every=2), rated([[1, 0], [0, 2]], measured=False)
    state = {"log_multiplier": {"a": 0.5, "b": -0.5}}
    assert combination.next_state(batch, state) == state
    assert [combination.measures_gradients(step) for step in range(4)] == [True, False, True, False]
    assert set(combination.metrics(batch, state)) == {"reward_multiplier/a", "reward_multiplier/b"}


# --- conflict averse -------------------------------------------------------------------------------------------------


def direction(combination: ConflictAverse, gradients: list[list[float]], shares: list[float]) -> Tensor:
    """d, from the multipliers."""
    batch = rated(gradients, shares)
    found = combination.multipliers(batch, combination.initial_state(batch.labels))
    weights = torch.tensor([found[label] * share for label, share in zip(batch.labels, shares, strict=True)])
    return weights.double() @ wide(gradients)


def random_case(seed: int, number: int) -> tuple[list[list[float]], list[float]]:
    generator = torch.Generator().manual_seed(seed)
    gradients = torch.randn(number, 5, generator=generator, dtype=torch.float64)
    shares = torch.rand(number, generator=generator, dtype=torch.float64) + 0.05
    return gradients.tolist(), (shares / shares.sum()).tolist()


def test_without_strength_it_is_the_weighted_sum() -> None:
    gradients, shares = random_case(0, 3)
    expected = wide(shares) @ wide(gradients)
    torch.testing.assert_close(direction(ConflictAverse(0.0), gradients, shares), expected)


def test_equal_gradients_become_longer() -> None:
    """d = (1 + c) g."""
    found = direction(ConflictAverse(0.4), [[3, -4], [3, -4]], [0.3, 0.7])
    torch.testing.assert_close(found, 1.4 * wide([3.0, -4.0]))


def test_opposing_gradients_cancel() -> None:
    assert direction(ConflictAverse(0.4), [[1, 2], [-1, -2]], [0.5, 0.5]).tolist() == [0, 0]


@pytest.mark.parametrize("clipped", [True, False])
@pytest.mark.parametrize("seed", range(20))
def test_the_step_stays_near_the_sums(seed: int, clipped: bool) -> None:
    """|d - g_0| = c |g_0|, and <d, g_0> >= (1 - c) |g_0|²."""
    (gradients, shares), strength = random_case(seed, 2 + seed % 3), 0.6
    mean = wide(shares) @ wide(gradients)
    found = direction(ConflictAverse(strength, clipped=clipped), gradients, shares)
    assert float((found - mean).norm()) == pytest.approx(strength * float(mean.norm()), rel=1e-6)
    assert float(found @ mean) >= (1 - strength) * float(mean @ mean) - 1e-12


def test_the_witness_of_an_audit() -> None:
    """g_1 = (1, -4), g_2 = (-1, 1), w = (.2, .8), c = .5: the minimum is at p_1 = 0.356."""
    gradients = wide([[1.0, -4.0], [-1.0, 1.0]])
    found = conflict_averse_weights(gradients @ gradients.T, wide([0.2, 0.8]), 0.5)
    assert found.tolist() == pytest.approx([0.356, 0.644], abs=5e-4)
    kept = ConflictAverse(0.5).multipliers(rated(gradients.tolist(), [0.2, 0.8]), {})
    mean, kept_sum = wide([0.2, 0.8]) @ gradients, wide([0.2, 0.644]) @ gradients
    factor = 0.5 * float(mean.norm() / kept_sum.norm())
    assert kept["a"] == pytest.approx(1 + factor, rel=1e-3)
    assert kept["b"] == pytest.approx(1 + factor * 0.644 / 0.8, rel=1e-3), "no reward beyond its weight"


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("number", [2, 3, 4])
def test_the_minimum_is_found(number: int, seed: int) -> None:
    """No point of a fine grid, nor near the one found, is lower."""
    (rows, shares), strength = random_case(seed, number), 0.1 + 0.1 * seed
    gradients_KD, shares_K = wide(rows), wide(shares)
    mean_D = shares_K @ gradients_KD

    def values(points_NK: Tensor) -> Tensor:
        sums_ND = points_NK @ gradients_KD
        return sums_ND @ mean_D + strength * mean_D.norm() * sums_ND.norm(dim=1)

    found_K = conflict_averse_weights(gradients_KD @ gradients_KD.T, shares_K, strength)
    assert float(found_K.min()) >= 0 and float(found_K.sum()) == pytest.approx(1)
    steps = {2: 2000, 3: 120, 4: 40}[number]
    grid = [point for point in itertools.product(range(steps + 1), repeat=number - 1) if sum(point) <= steps]
    points_NK = torch.tensor([[*point, steps - sum(point)] for point in grid]).double() / steps
    lowest = float(values(found_K[None]))
    assert lowest <= float(values(points_NK).min()) + 1e-9
    for scale in (1e-2, 1e-4, 1e-6):
        near_NK = found_K + scale * (points_NK - found_K)
        assert lowest <= float(values(near_NK).min()) + 1e-12


def test_the_neglected_reward_counts_more() -> None:
    found = ConflictAverse().multipliers(rated([[4, 0], [-1, 1]], [0.5, 0.5]), {})
    assert found["b"] > found["a"] >= 1


def test_what_has_no_gradient_has_no_part() -> None:
    """The other two are as they would be without it, their weights aside."""
    combination = ConflictAverse()
    with_it = combination.multipliers(rated([[4, 0], [0, 0], [-1, 1]], [0.25, 0.5, 0.25]), {})
    without = combination.multipliers(rated([[4, 0], [-1, 1]], [0.25, 0.25]), {})
    assert (with_it["a"], with_it["c"]) == pytest.approx((without["a"], without["b"])) and with_it["b"] == 1
    alone = combination.multipliers(rated([[4, 0], [0, 0]], [0.25, 0.75]), {})
    assert alone == pytest.approx({"a": 1.4, "b": 1.0}), "d = (1 + c) g_0"


@pytest.mark.parametrize("seed", range(10))
def test_the_reward_that_is_served_worst_is_served_better(seed: int) -> None:
    """CAGrad: no direction near the sum's has a larger smallest <g_k, d>."""
    (gradients, shares), strength = random_case(seed, 2 + seed % 3), 0.6
    gradients_KD = wide(gradients)
    mean_D = wide(shares) @ gradients_KD
    found = float((gradients_KD @ direction(ConflictAverse(strength, clipped=False), gradients, shares)).min())
    drawn_ND = torch.randn(20_000, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    others_ND = mean_D + strength * mean_D.norm() * drawn_ND / drawn_ND.norm(dim=1, keepdim=True)
    assert found >= float((gradients_KD @ mean_D).min()) - 1e-9
    assert found >= float((others_ND @ gradients_KD.T).amin(1).max()) - 1e-9


def test_the_multipliers_of_the_last_measurement_hold() -> None:
    combination = ConflictAverse(measured_every=2)
    measured, plain = rated([[4, 0], [-1, 1]]), rated([[4, 0], [-1, 1]], measured=False)
    state: State = combination.next_state(measured, combination.initial_state(measured.labels))
    assert state["multiplier"] == combination.multipliers(measured, {}) != {"a": 1.0, "b": 1.0}
    assert (
        combination.multipliers(plain, state)
        == state["multiplier"]
        == combination.next_state(plain, state)["multiplier"]
    )


@pytest.mark.parametrize(
    "combination", [GradientInfluence(), ConflictAverse(), ConflictAverse(clipped=False)], ids=repr
)
def test_rewards_without_weight_and_gradients_of_nothing_do_no_harm(combination: Any) -> None:
    for gradients, weights in (
        ([[1, 0], [5, 5], [0, 1]], [1.0, 0.0, 1.0]),
        ([[1, 0], [0, 0]], [1.0, 1.0]),
        ([[0, 0], [0, 0]], [1.0, 1.0]),
        ([[1, 0], [0, 1]], [0.0, 0.0]),
    ):
        batch = rated(gradients, weights)
        state = combination.next_state(batch, combination.initial_state(batch.labels))
        assert bool(combination.combine(batch, state).isfinite().all())
        assert all(map(math.isfinite, combination.metrics(batch, state).values()))
    without = rated([[1, 0], [0, 1]], [1.0, 1.0])
    of_three = combination.multipliers(
        rated([[1, 0], [5, 5], [0, 1]], [1.0, 0.0, 1.0]), combination.initial_state("abc")
    )
    of_two = combination.multipliers(without, combination.initial_state("ab"))
    assert [of_three["a"], of_three["c"]] == pytest.approx([of_two["a"], of_two["b"]])


def test_norms_and_the_smallest_cosine_are_reported() -> None:
    batch = rated([[3, 4], [-3, 4], [0, 0]])
    found = ConflictAverse().metrics(batch, {})
    assert [found[f"reward_gradient_norm/{label}"] for label in "abc"] == pytest.approx([5, 5, 0])
    assert found["reward_gradient_cosine"] == pytest.approx((16 - 9) / 25)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: GradientInfluence(-0.1),
            r"reward_combination\.step_size is -0\.1; expected a finite number of at least",
        ),
        (lambda: GradientInfluence(math.nan), r"step_size is nan; expected a finite number"),
        (lambda: ConflictAverse(1.0), r"strength is 1; expected a number from 0 to below 1"),
        (lambda: ConflictAverse(-0.5), r"strength is -0\.5; expected a number from 0 to below 1"),
        (lambda: ConflictAverse(measured_every=0), r"measured_every is 0; expected 1 step or more"),
        (
            lambda: GradientInfluence().check(["a"]),
            r"compares the gradients of rewards, and there is one, 'a'; expected",
        ),
    ],
)
def test_what_cannot_be_is_one_line(make: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make()
