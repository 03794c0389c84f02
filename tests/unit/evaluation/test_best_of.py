"""Facts of best-of-N and of the exponential tilt, mostly against enumeration."""

import itertools
import math

import numpy as np
import pytest

from tutelage.errors import ConfigurationError, DataError
from tutelage.evaluation import (
    best_of_distribution,
    best_of_kl,
    best_of_kl_bound,
    best_of_mean,
    best_of_weights,
    exponential_tilt,
    pass_at_k,
    tilt_kl,
    tilt_with_kl,
)

PROBS, REWARDS = np.array([0.1, 0.2, 0.3, 0.4]), np.array([2.0, -1.0, 2.0, 0.5])


@pytest.mark.parametrize("size", range(1, 7))
def test_the_mean_is_the_one_over_all_subsets(size):
    rewards = [0.3, -2.0, 5.0, 0.3, 1.0, 5.0]
    subsets = list(itertools.combinations(rewards, size))
    assert best_of_mean(rewards, size) == pytest.approx(np.mean([max(subset) for subset in subsets]))


def test_weights_sum_to_one_however_many_samples():
    for size in (1, 2, 700, 5000):
        weights = best_of_weights(5000, size)
        assert weights.sum() == pytest.approx(1.0) and (weights >= 0).all()


def test_verdicts_as_rewards_give_pass_at_k():
    for correct, size in itertools.product(range(9), (1, 2, 5, 8)):
        rewards = [1.0] * correct + [0.0] * (8 - correct)
        assert best_of_mean(rewards, size) == pytest.approx(pass_at_k(8, correct, size))


def test_the_estimate_is_unbiased():
    samples = itertools.product(range(4), repeat=3)
    expected = sum(
        PROBS[list(drawn)].prod() * best_of_mean(REWARDS[list(drawn)], 2) for drawn in samples
    )  # over all samples of three
    assert expected == pytest.approx(best_of_distribution(PROBS, REWARDS, 2) @ REWARDS)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_distribution_is_that_of_the_first_best_of_n(size):
    kept = np.zeros(4)
    for drawn in itertools.product(range(4), repeat=size):
        kept[max(drawn, key=lambda answer: REWARDS[answer])] += PROBS[list(drawn)].prod()
    found = best_of_distribution(PROBS, REWARDS, size)
    np.testing.assert_allclose(found, kept, atol=1e-12)
    np.testing.assert_allclose(best_of_distribution(PROBS, np.exp(3 * REWARDS), size), found, atol=1e-12)
    assert size > 1 or np.allclose(found, PROBS)


def test_two_rewards_give_the_chance_of_one_success():
    assert best_of_distribution([0.9, 0.1], [0, 1], 5)[1] == pytest.approx(1 - 0.9**5)


def test_the_bound_of_the_kl_and_where_it_is_reached():
    assert best_of_kl_bound(1) == 0.0
    assert best_of_kl_bound(4) == pytest.approx(0.6363, abs=5e-5)
    assert best_of_kl_bound(16) == pytest.approx(1.8351, abs=5e-5)
    fine, rewards = np.full(20_000, 1 / 20_000), np.arange(20_000) / 20_000
    for size in (2, 4, 16):
        assert best_of_kl(PROBS, REWARDS, size) < best_of_kl_bound(size)
        assert best_of_kl(fine, rewards, size) == pytest.approx(best_of_kl_bound(size), abs=1e-3)
        assert best_of_distribution(fine, rewards, size) @ rewards == pytest.approx(size / (size + 1), abs=1e-3)


def test_the_tilt_and_its_kl():
    np.testing.assert_allclose(exponential_tilt(PROBS, REWARDS, 0.0), PROBS)
    assert tilt_kl(PROBS, REWARDS, 0.0) == 0.0
    kls = [tilt_kl(PROBS, REWARDS, scale) for scale in (0.5, 1.0, 2.0)]
    assert kls == sorted(kls)
    tilted = exponential_tilt(PROBS, REWARDS, 2.0)
    assert kls[-1] == pytest.approx(np.sum(tilted * np.log(tilted / PROBS)))
    assert not np.allclose(exponential_tilt(PROBS, 2 * REWARDS, 1.0), exponential_tilt(PROBS, REWARDS, 1.0))
    assert np.isfinite(exponential_tilt([0.5, 0.5, 0.0], [0.0, 1e3, 1e6], 1.0)).all()


def test_the_tilt_of_a_kl_is_found_and_has_the_most_reward():
    for size in (2, 4):
        kl = best_of_kl(PROBS, REWARDS, size)
        scale = tilt_with_kl(PROBS, REWARDS, kl)
        assert tilt_kl(PROBS, REWARDS, scale) == pytest.approx(kl, abs=1e-9)
        best_of_n = best_of_distribution(PROBS, REWARDS, size) @ REWARDS
        assert exponential_tilt(PROBS, REWARDS, scale) @ REWARDS >= best_of_n
    assert tilt_with_kl(PROBS, REWARDS, 0.0) == pytest.approx(0.0, abs=1e-6)
    assert tilt_with_kl(PROBS, REWARDS, -math.log(0.4)) == math.inf
    assert tilt_with_kl(PROBS, np.ones(4), 0.0) == 0.0


def test_on_fifty_independent_tokens_both_nearly_coincide():
    length, chance = 50, 0.3
    ones = np.arange(length + 1)
    probs = np.array([math.comb(length, k) * chance**k * (1 - chance) ** (length - k) for k in ones])
    for size in (4, 16, 256, 4096):
        kl = best_of_kl(probs, ones, size)
        tilted = exponential_tilt(probs, ones, tilt_with_kl(probs, ones, kl)) @ ones
        best = best_of_distribution(probs, ones, size) @ ones
        assert 0 <= tilted - best < 0.02 * length


def test_what_is_no_question_is_refused():
    for size in (0, 3):
        with pytest.raises(ConfigurationError, match=f"best-of-{size}"):
            best_of_mean([1.0, 2.0], size)
    with pytest.raises(DataError, match="rewards_n"):
        best_of_mean([1.0, math.nan], 1)
    with pytest.raises(DataError, match="sum 0.9"):
        best_of_distribution([0.5, 0.4], [0, 1], 2)
    with pytest.raises(ConfigurationError, match="scale is inf"):
        exponential_tilt([0.5, 0.5], [0, 1], math.inf)
    with pytest.raises(ConfigurationError, match="kl is -1"):
        tilt_with_kl([0.5, 0.5], [0, 1], -1)
