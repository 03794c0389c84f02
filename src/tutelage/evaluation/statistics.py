"""pass@k from a few samples per problem, and how far that number can be trusted.

The same for a handful of seeds: a Student-t interval of their mean. Plain numpy and Python. The caller draws and
marks the samples.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from typing import TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import ConfigurationError, DataError

__all__ = ["bootstrap_interval", "interval_of", "pass_at_k", "relative_gain_interval", "t_interval", "t_quantile"]

IntArray: TypeAlias = NDArray[np.integer] | Sequence[int]

RESAMPLE_CHUNK_ELEMENTS = 1_000_000  # resampled indices in memory at once: 8 MB, whatever the number of problems


@overload
def pass_at_k(num_samples: int, num_correct: int, k: int) -> float: ...
@overload
def pass_at_k(num_samples: int | IntArray, num_correct: IntArray, k: int | IntArray) -> NDArray[np.float64]: ...
def pass_at_k(
    num_samples: int | IntArray, num_correct: int | IntArray, k: int | IntArray
) -> float | NDArray[np.float64]:
    """Unbiased estimate of the chance that at least one of k fresh samples is correct.

    pass@k = 1 - C(n - c, k) / C(n, k)     (Chen et al. 2021, arXiv 2107.03374, eq. 1)

    The ratio is computed as the product over j < k of (n - c - j) / (n - j), every factor in [0, 1], so that nothing
    overflows however large n is. At k = 1 this is c / n. The tempting 1 - (1 - c/n)^k is biased low.

    Args:
      num_samples: n, samples drawn per problem.
      num_correct: c, how many of them are correct; between 0 and n.
      k: between 1 and n.
    Returns:
      A float for three numbers; where one is an array, an array in the shape they broadcast to.
    """
    samples, correct, tries = np.broadcast_arrays(
        _whole_numbers("num_samples", num_samples), _whole_numbers("num_correct", num_correct), _whole_numbers("k", k)
    )
    if np.any(tries < 1):
        raise ConfigurationError(f"k is {k}; pass@k needs at least one try. Use k = 1 for plain accuracy.")
    if np.any(tries > samples):
        raise ConfigurationError(
            f"k is {k} for num_samples {num_samples}; k cannot exceed the number of samples of a problem. "
            f"Draw more samples or lower k."
        )
    if np.any(correct < 0) or np.any(correct > samples):
        raise ConfigurationError(
            f"num_correct is {num_correct} for num_samples {num_samples}; it must stay between 0 and num_samples. "
            f"Count the correct samples of one problem at a time."
        )
    chance_all_wrong = np.ones(samples.shape)
    for j in range(int(tries.max())):
        factor = (samples - correct - j).clip(min=0) / (samples - j).clip(min=1)
        chance_all_wrong *= np.where(j < tries, factor, 1)
    estimate: NDArray[np.float64] = 1 - chance_all_wrong
    return estimate if estimate.ndim else float(estimate)


def bootstrap_interval(
    values_P: NDArray[np.floating] | Sequence[float],
    confidence: float = 0.95,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over problems.

    Problems are drawn with replacement, P at a time; the interval spans the central `confidence` of the resampled
    means (Efron 1979). It covers the choice of problems *and* the sampling noise within each, as both move the value of
    a problem. It is a little too narrow for a few dozen problems, has width 0 for a single problem or equal values, and
    says nothing about the seed of the training run.

    Args:
      values_P: one finite number per problem, such as its share of correct samples; at least one.
      confidence: in (0, 1).
      num_resamples: how many means are drawn; 10,000 settle both ends to about 1% of the width.
      seed: of the resampling; the same seed gives the same interval.
    Returns:
      (low, high), in the unit of the values.
    """
    values = np.asarray(values_P, dtype=np.float64)
    if values.ndim != 1 or values.size == 0 or not np.all(np.isfinite(values)):
        raise DataError(
            f"values_P has shape {values.shape} with {np.isfinite(values).sum()} finite entries; expected one finite "
            f"number per problem and at least one problem. Average over the samples of each problem first."
        )
    if not 0 < confidence < 1:
        raise ConfigurationError(f"confidence is {confidence}; it must lie strictly between 0 and 1. Use 0.95 for 95%.")
    if num_resamples < 1:
        raise ConfigurationError(f"num_resamples is {num_resamples}; at least one is needed. Use 10000.")
    (means,) = _resampled_means([values], num_resamples, seed)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def relative_gain_interval(
    values_P: Sequence[float], baseline_P: Sequence[float], confidence: float = 0.95, num_resamples: int = 10_000
) -> tuple[float, float] | None:
    """Percentile bootstrap interval of mean(values) / mean(baseline) - 1 over problems, each drawn with its pair.

    Args:
      values_P, baseline_P: one number of 0 or more per problem, in the same order.
    Returns:
      (low, high); None where the interval has no end, since too many resampled baselines are 0.
    """
    if len(values_P) != len(baseline_P) or not len(values_P):
        raise DataError(
            f"Got {len(values_P)} values and {len(baseline_P)} of the baseline; expected one pair per problem. Pass "
            "both in the order of the problems."
        )
    values, baseline = _resampled_means([np.asarray(values_P, float), np.asarray(baseline_P, float)], num_resamples, 0)
    gains = np.full(num_resamples, np.inf)
    np.divide(values, baseline, out=gains, where=baseline > 0)
    # Not between two gains: the mean of a number and infinity is no gain at all.
    low, high = np.quantile(gains - 1, [(1 - confidence) / 2, (1 + confidence) / 2], method="inverted_cdf")
    return (float(low), float(high)) if math.isfinite(high) else None


def interval_of(
    statistic: Callable[[NDArray[np.integer]], float | None],
    num_problems: int,
    confidence: float = 0.95,
    num_resamples: int = 1000,
) -> tuple[float, float] | None:
    """Percentile bootstrap interval over problems of a statistic that is no mean, such as an AUROC.

    Args:
      statistic: places of the drawn problems, [P] with repeats -> its value, or None where it has none.
    Returns:
      (low, high); None where more than one resample in twenty has no value, since the others would be a selection.
    """
    generator = np.random.default_rng(0)
    values = [statistic(generator.integers(num_problems, size=num_problems)) for _ in range(num_resamples)]
    known = [value for value in values if value is not None]
    if len(known) < 0.95 * num_resamples:
        return None
    low, high = np.quantile(known, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def t_interval(values_S: Sequence[float], confidence: float = 0.95) -> tuple[float, float] | None:
    """Student-t interval of the mean of a few independent numbers, such as one paired difference per seed.

    mean ± t_{n-1} s / √n,   s² = sum (x - mean)² / (n - 1)     (Student 1908)

    Exact for normal values. It does not cover what was the same for all of them, such as the problems.

    Args:
      values_S: one finite number per seed.
      confidence: in (0, 1).
    Returns:
      (low, high) in the unit of the values; None for fewer than two, which have no spread to judge by.
    """
    if any(not math.isfinite(value) for value in values_S):
        raise DataError(f"values_S is {list(values_S)}; expected finite numbers. Leave out the seeds without one.")
    if not 0 < confidence < 1:
        raise ConfigurationError(f"confidence is {confidence}; it must lie strictly between 0 and 1. Use 0.95 for 95%.")
    if len(values_S) < 2:
        return None
    mean, error = statistics.fmean(values_S), statistics.stdev(values_S) / math.sqrt(len(values_S))
    half = t_quantile((1 + confidence) / 2, len(values_S) - 1) * error
    return mean - half, mean + half


def _resampled_means(arrays: Sequence[NDArray[np.float64]], num_resamples: int, seed: int) -> NDArray[np.float64]:
    """Means of each array, [array, resample], over problems drawn with replacement; the same ones for all arrays."""
    generator = np.random.default_rng(seed)
    size = arrays[0].size
    chunk = max(1, RESAMPLE_CHUNK_ELEMENTS // size)
    means = []
    for start in range(0, num_resamples, chunk):
        drawn = generator.integers(size, size=(min(chunk, num_resamples - start), size))
        means.append([array[drawn].mean(axis=1) for array in arrays])
    return np.concatenate(means, axis=1)


def t_quantile(probability: float, degrees: int) -> float:
    """The number below which Student's t with `degrees` degrees of freedom lies with the given probability.

    For whole degrees the distribution is a finite sum in the angle arctan(t / √degrees) (Abramowitz and Stegun, 26.7.3
    and 26.7.4), which bisection inverts to rounding.

    Args:
      probability: in (0, 1).
      degrees: at least 1.
    """
    if not 0 < probability < 1 or degrees < 1:
        raise ConfigurationError(
            f"probability is {probability} and degrees {degrees}; expected a probability in (0, 1) and at least one "
            "degree of freedom. Use 0.975 and the number of seeds less one."
        )
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        if _t_central_mass(middle, degrees) < abs(2 * probability - 1):
            low = middle
        else:
            high = middle
    return math.copysign(math.sqrt(degrees) * math.tan((low + high) / 2), probability - 0.5)


def _t_central_mass(angle: float, degrees: int) -> float:
    """P(|t| < √degrees tan(angle)): cos^j terms for j of the parity of degrees - 2, each (j - 1) / j of the last."""
    first = degrees % 2
    term = math.cos(angle) if first else 1.0
    total = term if degrees > 1 else 0.0
    for power in range(first + 2, degrees - 1, 2):
        term *= (power - 1) / power * math.cos(angle) ** 2
        total += term
    return 2 / math.pi * (angle + math.sin(angle) * total) if first else math.sin(angle) * total


def _whole_numbers(name: str, value: int | IntArray) -> NDArray[np.float64]:
    """The value as float64, exact for counts; integer arithmetic would wrap around for unsigned arrays."""
    array = np.asarray(value)
    if array.dtype.kind not in "biu" or array.size == 0:
        raise ConfigurationError(
            f"{name} is {value!r}; expected a whole number or a non-empty array of them. Convert it with int()."
        )
    return array.astype(np.float64)
