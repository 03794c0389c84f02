"""Forecasts beyond the samples, against worlds where the truth is known."""

import math

import numpy as np
import pytest

from tutelage.errors import ConfigurationError, DataError
from tutelage.evaluation import (
    Candidates,
    check_forecast,
    forecast_best_of,
    forecast_pass_at_k,
    forecasts_of,
    pass_at_k,
)


@pytest.mark.parametrize("shape", [(0.3, 1.0), (1.0, 3.0), (0.2, 0.2)])
def test_pass_at_k_of_problems_with_chances_from_a_beta(shape: tuple[float, float]) -> None:
    generator = np.random.default_rng(2)
    chances_P = generator.beta(*shape, size=300)
    correct_P = generator.binomial(16, chances_P)
    for k in (32, 256):
        forecast = forecast_pass_at_k(16, correct_P, k)
        truth = float(np.mean(1 - (1 - chances_P) ** k))
        assert forecast.interval[0] < truth < forecast.interval[1]
        assert abs(forecast.value - truth) < 0.03
    assert forecast_pass_at_k(16, correct_P, 16).value == pytest.approx(
        float(np.mean(pass_at_k(16, correct_P, 16))), abs=0.03
    )


def test_pass_at_k_rises_and_where_nothing_was_right_the_interval_is_wide() -> None:
    values = [forecast_pass_at_k(4, [0, 1, 0, 2], k).value for k in (4, 8, 64, 10**6)]
    assert values == sorted(values) and values[-1] <= 1
    nothing = forecast_pass_at_k(4, [0] * 50, 64)
    assert nothing.interval[0] < 0.01 < nothing.value < 0.1 < nothing.interval[1]
    assert forecast_pass_at_k(4, [4] * 50, 64).value > 0.999


@pytest.mark.parametrize(
    ("draw", "truths"),
    [
        ("normal", {32: 2.0697, 64: 2.3437}),
        ("exponential", {n: sum(1 / i for i in range(1, n + 1)) for n in (32, 64)}),
        ("random", {n: n / (n + 1) for n in (32, 64)}),
    ],
)
def test_best_of_n_of_known_distributions(draw: str, truths: dict[int, float]) -> None:
    rewards = getattr(np.random.default_rng(0), draw)(size=(400, 16))
    for size, truth in truths.items():
        forecast = forecast_best_of(rewards, size)
        assert forecast.value == pytest.approx(truth, rel=0.08)
        assert forecast.interval[0] < truth < forecast.interval[1]


def test_increments_form_a_geometric_series() -> None:
    rewards = np.array([[0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0]] * 2)
    sizes = {n: 1 - math.comb(3, n) / math.comb(8, n) for n in (2, 4, 8)}
    before, last = sizes[4] - sizes[2], sizes[8] - sizes[4]
    ratio = last / before
    assert forecast_best_of(rewards, 8).value == pytest.approx(sizes[8])
    assert forecast_best_of(rewards, 32).value == pytest.approx(sizes[8] + last * (ratio + ratio**2))
    assert forecast_best_of(np.ones((3, 4)), 64).value == 1.0
    assert forecast_best_of(np.random.default_rng(0).normal(size=(1, 8)), 16).interval is None


def test_there_is_no_forecast_while_doublings_gain_more_and_more() -> None:
    rare = (np.random.default_rng(0).random((200, 16)) < 0.02).astype(float)
    forecast = forecast_best_of(rare, 64)
    assert (forecast.value, forecast.interval) == (None, None)
    assert forecast.to_dict()["interval"] is None


def test_forecasts_are_made_for_powers_of_two_beyond_the_samples() -> None:
    generator = np.random.default_rng(0)
    candidates = [
        Candidates([-1.0] * 4, [1] * 4, (generator.random(4) < 0.5).tolist(), generator.normal(size=4).tolist())
        for _ in range(5)
    ]
    found = forecasts_of(candidates, 20, with_rewards=True)
    assert [(each.quantity, each.num_samples) for each in found] == [
        ("pass_at_k", 8),
        ("pass_at_k", 16),
        ("best_of_reward", 8),
        ("best_of_reward", 16),
    ]
    assert len(forecasts_of(candidates, 20, with_rewards=False)) == 2
    assert forecasts_of(candidates, 0, with_rewards=True) == ()


def test_what_cannot_be_forecast_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="expected at least 8, the next power of two"):
        check_forecast(7, 4, 1.0)
    with pytest.raises(ConfigurationError, match="greedy samples are all the same"):
        check_forecast(64, 4, 0.0)
    check_forecast(8, 4, 1.0)
    check_forecast(None, 4, 0.0)
    with pytest.raises(DataError, match="num_correct_P"):
        forecast_pass_at_k(4, [5], 8)
    with pytest.raises(ConfigurationError, match="k is 0"):
        forecast_pass_at_k(4, [1], 0)
    with pytest.raises(DataError, match="at least 4 samples"):
        forecast_best_of([[1.0, 2.0, 3.0]], 8)
    with pytest.raises(ConfigurationError, match="need no forecast"):
        forecast_best_of(np.zeros((2, 8)), 4)
