"""A curve of a million points, reduced to what a figure can show: the means and extremes of equal stretches.

Only what is drawn is gathered here. Numbers in tables are of all points.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from tutelage.report.records import Curve

__all__ = ["MAX_STRETCHES", "extreme_places", "extremes", "gathered", "moving_average", "moving_median", "smoothed"]

MAX_STRETCHES = 500  # of a curve; a figure in a paper's column is about as many points wide
SMOOTHING_SHARE = 1 / 20  # width of a moving average or median, as a share of the points of a curve


def extreme_places(values: NDArray[np.float64]) -> NDArray[np.intp]:
    """Places of the lowest and the highest value of each stretch, and of both ends: no spike is lost between them.

    All places where there are no more values than stretches.
    """
    if len(values) <= MAX_STRETCHES:
        return np.arange(len(values))
    edges = _edges(len(values))
    places = {0, len(values) - 1}
    for start, end in pairwise(edges):
        part = values[start:end]
        places |= {int(start + part.argmin()), int(start + part.argmax())}
    return np.array(sorted(places))


def extremes(line: Curve) -> Curve:
    """The curve through the lowest and the highest point of each stretch."""
    places = extreme_places(line.values)
    return Curve(line.steps[places], line.values[places])


def gathered(values: NDArray[np.float64], *, by_median: bool = False) -> NDArray[np.float64]:
    """The mean, or the median, of each stretch; the values themselves where they are no more than stretches."""
    if len(values) <= MAX_STRETCHES:
        return values
    edges = _edges(len(values))
    if by_median:
        return np.array([np.median(values[start:end]) for start, end in pairwise(edges)])
    sums: NDArray[np.float64] = np.add.reduceat(values, edges[:-1])
    return sums / np.diff(edges)


def smoothed(line: Curve) -> Curve:
    """The curve's moving average over a twentieth of it, at the middle of each stretch."""
    return Curve(gathered(line.steps), moving_average(gathered(line.values)))


def moving_average(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Centred mean over an odd window, cut off at both ends."""
    window = np.ones(_odd_window(len(values)))
    if len(window) == 1:
        return values  # also where there is no value at all, which numpy would refuse
    return np.convolve(values, window, mode="same") / np.convolve(np.ones(len(values)), window, mode="same")


def moving_median(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Centred median over an odd window, the curve mirrored beyond its ends."""
    window = _odd_window(len(values))
    if window == 1:
        return values
    padded = np.pad(values, window // 2, mode="reflect")
    medians: NDArray[np.float64] = np.median(np.lib.stride_tricks.sliding_window_view(padded, window), axis=-1)
    return medians


def _odd_window(num_points: int) -> int:
    return 2 * round(num_points * SMOOTHING_SHARE / 2) + 1


def _edges(num_values: int) -> NDArray[np.intp]:
    """Where stretches begin, and the end of the last; their lengths differ by one at most."""
    return np.linspace(0, num_values, MAX_STRETCHES + 1).astype(np.intp)
