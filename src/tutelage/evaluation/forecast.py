"""What would more samples give?  pass@k and best-of-N beyond the number of samples that were drawn.

No estimate from n samples is unbiased beyond n. Both forecasts assume a shape, which their docstrings state; their
intervals cover the choice of problems and the noise of the samples, and not that the shape may be another.

Axis letters: P problems, G samples per problem, R resamples, Z points of a grid, D different numbers of right samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tutelage.errors import ConfigurationError, DataError
from tutelage.evaluation.best_of import best_of_mean

__all__ = ["MIN_FORECAST_SAMPLES", "Forecast", "check_forecast", "forecast_best_of", "forecast_pass_at_k"]

MIN_FORECAST_SAMPLES = 4  # three sizes, each twice the one before
NUM_RESAMPLES = 1000
# The grid over Beta distributions: their mean, evenly in its logit, and a + b, evenly in its logarithm.
NUM_MEANS, MAX_LOGIT = 81, 12.0
CONCENTRATIONS = np.exp(np.linspace(math.log(0.02), math.log(1000.0), 41))

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Forecast:
    """A number that was not measured.

    Fields:
      quantity: "pass_at_k", or "best_of_reward".
      num_samples: k or N, how many samples it is about.
      value: the forecast; None = what it assumes does not hold for the samples.
      interval: 95%; None where there is none, as for the rewards of a single problem.
    """

    quantity: str
    num_samples: int
    value: float | None
    interval: tuple[float, float] | None

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON would give them back."""
        return asdict(self) | {"interval": None if self.interval is None else list(self.interval)}


def check_forecast(up_to: int | None, num_samples: int, temperature: float) -> None:
    """Refuse forecasts, asked for by --forecast, that the samples cannot give.

    Raises:
      ConfigurationError: nothing lies beyond the samples, or they are all the same.
    """
    if up_to is None:
        return
    if temperature == 0:
        raise ConfigurationError(
            f"--forecast is {up_to} and --temperature is 0; greedy samples are all the same, and more of them give "
            "nothing new. Sample at a temperature above 0, or drop --forecast."
        )
    if up_to < 2 ** num_samples.bit_length():
        raise ConfigurationError(
            f"--forecast is {up_to} and --samples is {num_samples}; expected at least "
            f"{2 ** num_samples.bit_length()}, the next power of two. Raise it, or drop it: pass@k up to {num_samples} "
            "is measured."
        )


def forecast_pass_at_k(num_samples: int, num_correct_P: Sequence[int] | NDArray[np.integer], k: int) -> Forecast:
    """pass@k of k fresh samples of the same problems, for any k.

    It is assumed that the chances p of the problems are draws from one Beta(a, b), and that samples of a problem are
    independent; so c of n right samples are beta-binomial, and

    1 - pass@k of a problem = E[(1 - p)^k | c of n] = B(a + c, b + n - c + k) / B(a + c, b + n - c)

    averaged over the posterior of (a, b) on a grid, with the mean uniform in (0, 1) and a + b log-uniform. How pass@k
    grows beyond n hangs on how many problems have a tiny chance (Schaeffer et al., arXiv 2502.17578); a Beta has a
    power law there. It has no problems that can never be solved, so a forecast far beyond n tends to 1.

    The interval is of 1000 resamples of the problems, each with one draw from its posterior.

    Args:
      num_samples: n, samples of each problem.
      num_correct_P: how many of them are right.
      k: at least 1.
    """
    correct_P = np.asarray(num_correct_P)
    if correct_P.ndim != 1 or correct_P.size == 0 or (correct_P < 0).any() or (correct_P > num_samples).any():
        raise DataError(
            f"num_correct_P is {num_correct_P} for num_samples {num_samples}; expected a whole number from 0 to "
            "num_samples for each problem, and at least one problem. Count the right samples of each problem."
        )
    if k < 1:
        raise ConfigurationError(f"k is {k}; pass@k needs at least one try. Use k = 1 for plain accuracy.")
    counts_D, place_P = np.unique(correct_P, return_inverse=True)
    a_Z1, b_Z1, log_prior_Z = _beta_grid()
    right_D, wrong_D = counts_D, num_samples - counts_D
    log_likelihood_ZD = _log_beta(a_Z1 + right_D, b_Z1 + wrong_D) - _log_beta(a_Z1, b_Z1)
    pass_ZD = -np.expm1(_log_beta(a_Z1 + right_D, b_Z1 + wrong_D + k) - _log_beta(a_Z1 + right_D, b_Z1 + wrong_D))

    def posterior(count_RD: Floats) -> Floats:
        log_posterior_RZ = count_RD @ log_likelihood_ZD.T + log_prior_Z
        posterior_RZ = np.exp(log_posterior_RZ - log_posterior_RZ.max(axis=1, keepdims=True))
        normalised: Floats = posterior_RZ / posterior_RZ.sum(axis=1, keepdims=True)
        return normalised

    count_D = np.bincount(place_P, minlength=len(counts_D)).astype(np.float64)
    value = float((posterior(count_D[None]) @ pass_ZD @ count_D)[0] / count_D.sum())
    generator = np.random.default_rng(0)
    count_RD = generator.multinomial(correct_P.size, count_D / count_D.sum(), size=NUM_RESAMPLES).astype(np.float64)
    upper_RZ = np.cumsum(posterior(count_RD), axis=1)
    drawn_R = (generator.random((NUM_RESAMPLES, 1)) > upper_RZ).sum(axis=1).clip(max=upper_RZ.shape[1] - 1)
    means_R = (pass_ZD[drawn_R] * count_RD).sum(axis=1) / correct_P.size
    low, high = np.quantile(means_R, [0.025, 0.975])
    return Forecast("pass_at_k", k, value, (float(low), float(high)))


def forecast_best_of(rewards_PG: Floats | Sequence[Sequence[float]], size: int) -> Forecast:
    """Mean reward of the best of N fresh samples, for N beyond the G samples of each problem.

    b_N = b_m + (b_m - b_{m/2}) (ρ + ρ² + ... + ρ^x),   ρ = (b_m - b_{m/2}) / (b_{m/2} - b_{m/4}),   x = log2(N / m)

    with the unbiased b of `best_of_mean`, averaged over problems, and m the largest multiple of 4 up to G. For an x
    that is not whole, the sum is the geometric one. So a doubling of N adds ρ times what the doubling before it added.

    That is the law of the largest of many draws from any distribution with an extreme-value limit, with ρ = 2^ξ (Fisher
    and Tippett 1928; de Haan and Ferreira, Extreme Value Theory, theorem 1.1.6). It is assumed that this holds from m/4
    draws on, for the mean over problems, and that the tail is not heavier than exponential (ξ <= 0): ρ is cut at 1.
    If it is clearly heavier, in 97.5% of the resamples by the ρ of exponential rewards at the same m, there is no
    forecast. That is so while the best answers are still rare, as for rewards of two values, which `forecast_pass_at_k`
    is for. The reward is the one that is maximised, which an answer may exploit.

    For bounded rewards ρ still falls as N grows, so the forecast may pass the bound. The interval is of 1000 resamples
    of the problems, and covers ρ's noise.

    Args:
      rewards_PG: finite, at least 4 samples of each problem.
      size: N, at least G.
    """
    rewards = np.asarray(rewards_PG, dtype=np.float64)
    if rewards.ndim != 2 or rewards.shape[0] < 1 or rewards.shape[1] < MIN_FORECAST_SAMPLES:
        raise DataError(
            f"rewards_PG has the shape {rewards.shape}; expected problems and at least {MIN_FORECAST_SAMPLES} samples "
            "of each. Draw more samples."
        )
    if size < rewards.shape[1]:
        raise ConfigurationError(
            f"best-of-{size} was to be forecast from {rewards.shape[1]} samples, which need no forecast. Use "
            "best_of_mean."
        )
    quarter = rewards.shape[1] // 4
    sizes = (quarter, 2 * quarter, 4 * quarter)
    best_P3 = np.array([[best_of_mean(own_G, each) for each in sizes] for own_G in rewards])
    shares_P = np.full(len(rewards), 1 / len(rewards))
    drawn_RP = np.random.default_rng(0).multinomial(len(rewards), shares_P, size=NUM_RESAMPLES)
    best_R3 = drawn_RP @ best_P3 / len(rewards)
    before_R, last_R = np.diff(best_R3, axis=1).T
    before, last = np.diff([math.fsum(1 / i for i in range(1, each + 1)) for each in sizes])  # exponential rewards
    if np.mean(last_R * before > before_R * last * (1 + 1e-9)) >= 0.975:
        return Forecast("best_of_reward", size, None, None)
    num_doublings = math.log2(size / sizes[-1])
    value = float(_extrapolated(best_P3.mean(axis=0)[None], num_doublings)[0])
    if len(rewards) < 2:
        return Forecast("best_of_reward", size, value, None)
    low, high = np.quantile(_extrapolated(best_R3, num_doublings), [0.025, 0.975])
    return Forecast("best_of_reward", size, value, (float(low), float(high)))


def _extrapolated(best_R3: Floats, num_doublings: float) -> Floats:
    """The geometric continuation, from the values at m/4, m/2 and m."""
    before_R, last_R = np.diff(best_R3, axis=1).T
    ratio_R = np.divide(last_R, before_R, out=np.ones_like(last_R), where=before_R > 0).clip(0, 1)
    is_log_R = ratio_R > 1 - 1e-9
    below_R = np.where(is_log_R, 0.5, ratio_R)
    sum_R = np.where(is_log_R, num_doublings, below_R * (1 - below_R**num_doublings) / (1 - below_R))
    extrapolated: Floats = best_R3[:, 2] + last_R * sum_R
    return extrapolated


def _beta_grid() -> tuple[Floats, Floats, Floats]:
    """a and b, [Z, 1] each, and the logarithm of their prior [Z], up to a constant."""
    mean = 1 / (1 + np.exp(-np.linspace(-MAX_LOGIT, MAX_LOGIT, NUM_MEANS)))
    mean_Z, total_Z = (grid.ravel() for grid in np.meshgrid(mean, CONCENTRATIONS, indexing="ij"))
    # Uniform in the mean: its density in the logit is mean (1 - mean).
    return (mean_Z * total_Z)[:, None], ((1 - mean_Z) * total_Z)[:, None], np.log(mean_Z) + np.log1p(-mean_Z)


def _log_beta(a: Floats, b: Floats) -> Floats:
    total: Floats = _log_gamma(a) + _log_gamma(b) - _log_gamma(a + b)
    return total


def _log_gamma(x: Floats) -> Floats:
    values: Floats = torch.lgamma(torch.from_numpy(np.asarray(x, dtype=np.float64))).numpy()
    return values
