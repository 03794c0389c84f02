"""What a handful of samples per problem says about pass@k, and how far that number can be trusted.

Both functions are plain numpy. How the samples were drawn, and who marked them, is left to the caller.
"""

from collections.abc import Sequence
from typing import TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import ConfigurationError, DataError

__all__ = ["bootstrap_interval", "pass_at_k"]

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
    generator = np.random.default_rng(seed)
    chunk = max(1, RESAMPLE_CHUNK_ELEMENTS // values.size)
    means = [
        values[generator.integers(values.size, size=(min(chunk, num_resamples - start), values.size))].mean(axis=1)
        for start in range(0, num_resamples, chunk)
    ]
    low, high = np.quantile(np.concatenate(means), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _whole_numbers(name: str, value: int | IntArray) -> NDArray[np.float64]:
    """The value as float64, exact for counts; integer arithmetic would wrap around for unsigned arrays."""
    array = np.asarray(value)
    if array.dtype.kind not in "biu" or array.size == 0:
        raise ConfigurationError(
            f"{name} is {value!r}; expected a whole number or a non-empty array of them. Convert it with int()."
        )
    return array.astype(np.float64)
