"""A curve in one line of text, for a terminal or a log."""

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["sparkline"]

BLOCKS = "▁▂▃▄▅▆▇█"


def sparkline(values: ArrayLike, width: int = 40) -> str:
    """The values as unicode blocks, the smallest ▁ and the largest █; equal values are all ▁, none are "".

    More values than `width` are averaged in `width` consecutive groups; fewer take one block each. Numbers that are not
    finite are skipped.
    """
    finite = np.asarray(values, dtype=np.float64)
    finite = finite[np.isfinite(finite)]
    if not finite.size:
        return ""
    means = np.array([group.mean() for group in np.array_split(finite, min(width, finite.size))])
    spread = float(np.ptp(means)) or 1.0
    return "".join(BLOCKS[round(level)] for level in (means - means.min()) / spread * (len(BLOCKS) - 1))
