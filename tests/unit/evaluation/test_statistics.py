import math
from itertools import combinations

import numpy as np
import pytest

from tutelage.errors import ConfigurationError, DataError
from tutelage.evaluation import (
    bootstrap_interval,
    interval_of,
    pass_at_k,
    relative_gain_interval,
    t_interval,
    t_quantile,
)
from tutelage.evaluation import statistics as module


@pytest.mark.parametrize("num_samples", range(1, 8))
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_sample(num_samples):
    for num_correct in range(num_samples + 1):
        verdicts = [True] * num_correct + [False] * (num_samples - num_correct)
        for k in range(1, num_samples + 1):
            subsets = [any(subset) for subset in combinations(verdicts, k)]
            assert pass_at_k(num_samples, num_correct, k) == pytest.approx(np.mean(subsets), abs=1e-14)


def test_pass_at_k_known_values():
    assert pass_at_k(10, 3, 1) == pytest.approx(0.3)
    assert pass_at_k(10, 3, 5) == pytest.approx(1 - 21 / 252)
    assert pass_at_k(4, 1, 4) == 1.0
    assert pass_at_k(8, 2, 4) == pytest.approx(0.785714, abs=1e-6)
    assert pass_at_k(256, 1, 64) == pytest.approx(0.25)
    assert pass_at_k(4, 0, 4) == 0.0
    assert isinstance(pass_at_k(4, 2, 2), float)


def test_pass_at_k_takes_arrays_and_broadcasts():
    num_correct = np.array([0, 1, 2, 4], dtype=np.uint8)  # unsigned: n - c - j must not wrap around
    estimate = pass_at_k(4, num_correct, 2)
    assert estimate.shape == (4,)
    np.testing.assert_allclose(estimate, [pass_at_k(4, int(c), 2) for c in num_correct])
    grid = pass_at_k(np.array([4, 8, 8, 16]), num_correct, np.array([[1], [2], [4]]))
    assert grid.shape == (3, 4)
    assert grid[2, 3] == pytest.approx(pass_at_k(16, 4, 4))


def test_pass_at_k_stays_exact_for_many_samples():
    assert pass_at_k(100_000, 1, 512) == pytest.approx(512 / 100_000, rel=1e-9)
    assert pass_at_k(100_000, 99_999, 2) == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((4, 2, 5), "k is 5 for num_samples 4"),
        ((4, 5, 1), "num_correct is 5"),
        ((4, -1, 1), "num_correct is -1"),
        ((4, 2, 0), "k is 0"),
        ((4, 2, -1), "k is -1"),
        ((-4, -5, 1), "k is 1"),
        ((4, 2.0, 1), "num_correct is 2.0"),
        ((4, [], 1), r"num_correct is \[\]"),
        ((np.array([4, 2]), np.array([1, 1]), 3), "k is 3"),
    ],
)
def test_pass_at_k_refuses_impossible_counts(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        pass_at_k(*arguments)


def test_bootstrap_interval_is_deterministic_and_contains_the_mean():
    values = np.random.default_rng(1).random(50)
    low, high = bootstrap_interval(values)
    assert (low, high) == bootstrap_interval(values.tolist())
    assert low < values.mean() < high
    assert (low, high) != bootstrap_interval(values, seed=1)
    wide_low, wide_high = bootstrap_interval(values, confidence=0.99)
    assert wide_low < low and high < wide_high


def test_bootstrap_interval_agrees_with_the_normal_one_on_many_problems():
    values = np.random.default_rng(2).random(400)
    half_width = 1.96 * values.std() / np.sqrt(values.size)
    np.testing.assert_allclose(
        bootstrap_interval(values), [values.mean() - half_width, values.mean() + half_width], atol=0.05 * half_width
    )


def test_bootstrap_interval_covers_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(3)
    covered = 0
    for _ in range(200):
        low, high = bootstrap_interval(generator.random(40), confidence=0.9, num_resamples=400)
        covered += low <= 0.5 <= high
    assert 0.82 <= covered / 200 <= 0.96


def test_bootstrap_interval_of_one_problem_or_equal_values_has_no_width():
    assert bootstrap_interval([0.25]) == (0.25, 0.25)
    assert bootstrap_interval([0.5] * 7) == (0.5, 0.5)


def test_bootstrap_interval_keeps_its_memory_small(monkeypatch):
    monkeypatch.setattr(module, "RESAMPLE_CHUNK_ELEMENTS", 1)  # less than one resample: one at a time
    low, high = bootstrap_interval([0.0, 1.0, 1.0], num_resamples=101)
    assert 0 <= low <= high <= 1


@pytest.mark.parametrize("values", [[], [[0.1, 0.2]], [0.1, float("nan")], [float("inf")]])
def test_bootstrap_interval_refuses_values_that_are_not_one_finite_number_per_problem(values):
    with pytest.raises(DataError, match="values_P has shape"):
        bootstrap_interval(values)


@pytest.mark.parametrize("options", [{"confidence": 0}, {"confidence": 1}, {"num_resamples": 0}])
def test_bootstrap_interval_refuses_impossible_options(options):
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        bootstrap_interval([0.1, 0.2], **options)


@pytest.mark.parametrize(
    ("degrees", "expected"),
    [(1, 12.706205), (2, 4.302653), (3, 3.182446), (4, 2.776445), (9, 2.262157), (30, 2.042272), (120, 1.979930)],
)
def test_t_quantiles_of_the_tables(degrees, expected):
    assert t_quantile(0.975, degrees) == pytest.approx(expected, abs=1e-6)
    assert t_quantile(0.025, degrees) == pytest.approx(-expected, abs=1e-6)
    assert t_quantile(0.5, degrees) == pytest.approx(0, abs=1e-12)


def test_t_quantiles_invert_the_integral_of_the_density():
    for degrees in (1, 2, 5, 8):
        grid = np.linspace(0, t_quantile(0.9, degrees), 100_001)
        density = (1 + grid**2 / degrees) ** (-(degrees + 1) / 2)
        whole = math.sqrt(degrees * math.pi) * math.gamma(degrees / 2) / math.gamma((degrees + 1) / 2)
        assert np.trapezoid(density, grid) / whole == pytest.approx(0.4, abs=1e-8)


def test_t_interval_of_a_worked_example():
    # mean 2, s = 1, so 2 ± 4.302653 / √3
    assert t_interval([1, 2, 3]) == pytest.approx((2 - 2.484138, 2 + 2.484138), abs=1e-6)
    assert t_interval([0.5, 0.5]) == (0.5, 0.5)
    assert t_interval([0.5]) is None and t_interval([]) is None


def test_t_interval_covers_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(4)
    covered = 0
    for _ in range(1000):
        low, high = t_interval(generator.normal(size=3).tolist(), confidence=0.8)
        covered += low <= 0 <= high
    assert 0.76 <= covered / 1000 <= 0.84


def test_t_refusals():
    with pytest.raises(DataError, match="values_S"):
        t_interval([0.1, float("nan")])
    for arguments in ((0.0, 3), (1.0, 3), (0.5, 0)):
        with pytest.raises(ConfigurationError, match="degree"):
            t_quantile(*arguments)
    with pytest.raises(ConfigurationError, match="confidence"):
        t_interval([1, 2], confidence=1)


def test_relative_gain_interval_of_known_ratios():
    assert relative_gain_interval([0.5, 1.0, 0.25], [0.25, 0.5, 0.125]) == (1, 1)
    low, high = relative_gain_interval([0.9, 0.5, 0.7, 0.8] * 20, [0.5, 0.6, 0.4, 0.5] * 20)
    assert low < 2.9 / 2.0 - 1 < high and high - low < 0.2


def test_relative_gain_interval_agrees_with_the_delta_method():
    generator = np.random.default_rng(0)
    baseline = generator.uniform(0.2, 0.8, 400)
    values = np.clip(baseline + generator.normal(0.1, 0.1, 400), 0, 1)
    ratio = values.mean() / baseline.mean()
    half = 1.96 * np.std(values - ratio * baseline) / baseline.mean() / math.sqrt(400)
    assert relative_gain_interval(values, baseline) == pytest.approx(
        (ratio - 1 - half, ratio - 1 + half), abs=0.1 * half
    )


def test_there_is_no_relative_gain_over_nothing():
    assert relative_gain_interval([0.5, 1.0], [0.0, 0.0]) is None
    assert relative_gain_interval([0.5, 1.0], [0.0, 0.5]) is None
    with pytest.raises(DataError, match="2 values and 1 of the baseline"):
        relative_gain_interval([0.5, 1.0], [0.5])


def test_an_interval_of_a_mean_is_the_bootstrap_interval() -> None:
    values = np.random.default_rng(1).random(40)
    mine = interval_of(lambda drawn: float(values[drawn].mean()), 40, num_resamples=20_000)
    assert mine == pytest.approx(bootstrap_interval(values), abs=0.003)


def test_an_interval_of_what_often_has_no_value_is_none() -> None:
    def largest_but_three(drawn: np.ndarray) -> float | None:
        return None if 3 in drawn else float(drawn.max())

    assert interval_of(largest_but_three, 5) is None
    assert interval_of(lambda drawn: float(drawn.max()), 5) is not None
