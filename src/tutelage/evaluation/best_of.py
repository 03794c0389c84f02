"""Best-of-N in numbers: what the best of N answers is worth, and how far that is from the policy that drew them.

Exact on a finite support, unbiased from samples. What lies beyond the samples is in `forecast.py`. Axis letters: Y
answers that there can be, n samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import ConfigurationError, DataError

__all__ = [
    "best_of_distribution",
    "best_of_kl",
    "best_of_kl_bound",
    "best_of_mean",
    "best_of_weights",
    "exponential_tilt",
    "tilt_kl",
    "tilt_with_kl",
]

Floats = NDArray[np.float64]


def best_of_weights(num_samples: int, size: int) -> Floats:
    """How often each of n sorted samples is the best of a random N of them.

    w_i = C(i-1, N-1) / C(n, N),   i = 1 ... n ascending

    Args:
      num_samples: n.
      size: N, between 1 and n.
    Returns:
      [n], for samples in ascending order; their sum is 1.
    """
    if not 1 <= size <= num_samples:
        raise ConfigurationError(
            f"best-of-{size} was asked for with {num_samples} samples; expected a size between 1 and the number of "
            "samples. Draw more samples, or lower the size."
        )
    i = np.arange(num_samples - 1, size - 1, -1)
    ratios = np.concatenate([[size / num_samples], (i - size + 1) / i])  # of neighbours, since the binomials overflow
    weights_n = np.zeros(num_samples)
    weights_n[size - 1 :] = np.cumprod(ratios)[::-1]
    return weights_n


def best_of_mean(rewards_n: Sequence[float] | Floats, size: int) -> float:
    """Unbiased estimate of the mean reward of the best of N fresh samples, from n >= N of them.

    sum_i C(i-1, N-1) / C(n, N) r_(i),   r_(1) <= ... <= r_(n)

    It is the mean over all subsets of size N of their largest reward; ties change nothing. For rewards 0 and 1 it is
    pass@N (`pass_at_k`), at N = 1 the plain mean.

    Args:
      rewards_n: finite numbers.
      size: N, between 1 and n.
    """
    rewards = _finite("rewards_n", rewards_n)
    return float(best_of_weights(rewards.size, size) @ np.sort(rewards))


def best_of_distribution(probs_Y: Sequence[float] | Floats, rewards_Y: Sequence[float] | Floats, size: int) -> Floats:
    """The exact distribution of best-of-N on a finite support.

    P(y) = [F(r_y)^N - F(r_y-)^N] p(y) / p(reward = r_y),   F the distribution function of the reward

    Of answers with equal rewards the one drawn first is kept. At N = 1 this is p.

    Args:
      probs_Y: p; its sum is 1.
      rewards_Y: one finite number each.
      size: N, at least 1.
    """
    probs, rewards = _distribution(probs_Y), _finite("rewards_Y", rewards_Y)
    _check_size(size)
    _, level_Y = np.unique(rewards, return_inverse=True)
    mass_L = np.bincount(level_Y, weights=probs)
    up_to_L = np.minimum(np.cumsum(mass_L), 1.0)
    up_to_L[-1] = 1.0
    gained_L = np.diff(up_to_L**size, prepend=0.0)
    share_L = np.divide(gained_L, mass_L, out=np.zeros_like(mass_L), where=mass_L > 0)
    kept: Floats = share_L[level_Y] * probs
    return kept


def best_of_kl(probs_Y: Sequence[float] | Floats, rewards_Y: Sequence[float] | Floats, size: int) -> float:
    """KL(best-of-N || p) in nats, exact; at most `best_of_kl_bound`."""
    probs, kept = _distribution(probs_Y), best_of_distribution(probs_Y, rewards_Y, size)
    has = kept > 0
    return float(np.sum(kept[has] * np.log(kept[has] / probs[has])))


def best_of_kl_bound(size: float) -> float:
    """log N - (N-1)/N: the most that KL(best-of-N || p) can be, in nats.

    It is reached where no two answers have equal rewards and no answer has a mass of its own, as long texts nearly do
    (Beirami et al., arXiv 2401.01879).
    """
    _check_size(size)
    return math.log(size) - (size - 1) / size


def exponential_tilt(probs_Y: Sequence[float] | Floats, rewards_Y: Sequence[float] | Floats, scale: float) -> Floats:
    """phi_t(y) ∝ p(y) exp(t r(y)): of all policies within a KL of p, the one with the most reward.

    Best-of-N with N = exp(m δ) comes close to it on sources of m independent tokens with an additive reward (Yang et
    al., arXiv 2404.01730). Unlike best-of-N it changes when rewards are put on another scale.

    Args:
      scale: t, finite; 0 gives p.
    """
    probs, rewards = _distribution(probs_Y), _finite("rewards_Y", rewards_Y)
    if not math.isfinite(scale):
        raise ConfigurationError(f"scale is {scale}; expected a finite number. Use 0 for no tilt.")
    exponents = np.where(probs > 0, scale * rewards, -np.inf)
    tilted = probs * np.exp(exponents - exponents.max())
    normalised: Floats = tilted / tilted.sum()
    return normalised


def tilt_kl(probs_Y: Sequence[float] | Floats, rewards_Y: Sequence[float] | Floats, scale: float) -> float:
    """KL(phi_t || p) = t M'(t) - M(t) in nats, with M(t) = log E_p exp(t r) and M'(t) the mean reward of phi_t."""
    probs, rewards = _distribution(probs_Y), _finite("rewards_Y", rewards_Y)
    tilted = exponential_tilt(probs, rewards, scale)
    exponents = np.where(probs > 0, scale * rewards, -np.inf)
    log_moment = float(exponents.max() + np.log(np.sum(probs * np.exp(exponents - exponents.max()))))
    return max(0.0, scale * float(tilted @ rewards) - log_moment)


def tilt_with_kl(probs_Y: Sequence[float] | Floats, rewards_Y: Sequence[float] | Floats, kl: float) -> float:
    """The scale t >= 0 whose tilt is `kl` nats from p; infinite where no tilt goes so far.

    The mean reward of this tilt is the most that any policy within that KL has, best-of-N with `best_of_kl` among them.
    """
    probs, rewards = _distribution(probs_Y), _finite("rewards_Y", rewards_Y)
    if not kl >= 0:
        raise ConfigurationError(f"kl is {kl}; expected at least 0 nats. Use `best_of_kl_bound` for a best-of-N.")
    possible = rewards[probs > 0]
    best = possible.max()
    spread = float(best - possible.min())
    if kl >= -math.log(probs[rewards == best].sum()) or spread == 0:
        return math.inf if kl > 0 else 0.0
    low, high = 0.0, 1.0 / spread
    while tilt_kl(probs, rewards, high) < kl and high < 1e12 / spread:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if tilt_kl(probs, rewards, middle) < kl else (low, middle)
    return (low + high) / 2


def _check_size(size: float) -> None:
    if not size >= 1:
        raise ConfigurationError(f"best-of-{size} was asked for; expected at least 1. Use 1 for a plain sample.")


def _finite(name: str, values: Sequence[float] | Floats) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0 or not np.isfinite(array).all():
        raise DataError(
            f"{name} has shape {array.shape} with {int(np.isfinite(array).sum())} finite entries; expected one finite "
            "number for each answer and at least one answer. Leave out the others."
        )
    return array


def _distribution(probs_Y: Sequence[float] | Floats) -> Floats:
    probs = _finite("probs_Y", probs_Y)
    if (probs < 0).any() or abs(probs.sum() - 1) > 1e-6:
        raise DataError(
            f"probs_Y has the sum {probs.sum():g} and the smallest entry {probs.min():g}; expected probabilities whose "
            "sum is 1. Divide them by their sum."
        )
    return probs
