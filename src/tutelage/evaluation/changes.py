"""What has been gained and lost since the first evaluation of a run?  Nothing here samples, marks or scores."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tutelage.errors import DataError
from tutelage.report.tables import SOLVED_SHARE

__all__ = ["changes_since", "retained_mass"]


def changes_since(first: Iterable[Mapping[str, Any]], now: Iterable[Mapping[str, Any]]) -> tuple[float, float] | None:
    """Shares of the problems that are solved now and were not at first, and the other way round.

    A problem is solved where at least half of its answers are right, as in a report. Answers are drawn, so some
    problems come and go by chance, in both directions.

    Args:
      first, now: samples of two evaluations of one set, with `problem_id` and `correct`. Problems that only one of them
        has do not count.
    Returns:
      (gained, lost); None where the two have no problem in common.
    """
    before, after = _solved(first), _solved(now)
    common = before.keys() & after.keys()
    if not common:
        return None
    gained = sum(after[name] and not before[name] for name in common)
    lost = sum(before[name] and not after[name] for name in common)
    return gained / len(common), lost / len(common)


def retained_mass(first_logprobs: Sequence[float], logprobs: Sequence[float]) -> float:
    """How much of the probability that a model once gave to right answers it still gives them, each by itself.

    M = 1 - Σ_y max(0, p0(y) - p(y)) / Σ_y p0(y)     over right answers y     (F-GRPO, arXiv 2602.06717)

    Estimated on right answers that the model itself drew at temperature 1: M = 1 - mean max(0, 1 - p(y) / p0(y)). It is
    1 where no answer has lost, whatever others have won. Answers that became more probable do not make up for those
    that became rare.

    Args:
      first_logprobs, logprobs: log p0 and log p of whole answers, in the same order; at least one.
    """
    if len(first_logprobs) != len(logprobs) or not len(logprobs):
        raise DataError(
            f"Got {len(first_logprobs)} and {len(logprobs)} log-probabilities; expected one pair for each right "
            "answer, and at least one. Score the same answers."
        )
    pairs = zip(first_logprobs, logprobs, strict=True)
    return 1 - math.fsum(-math.expm1(min(0.0, now - first)) for first, now in pairs) / len(logprobs)


def _solved(samples: Iterable[Mapping[str, Any]]) -> dict[str, bool]:
    counts: dict[str, list[bool]] = {}
    for sample in samples:
        counts.setdefault(str(sample["problem_id"]), []).append(bool(sample["correct"]))
    return {problem: sum(right) >= SOLVED_SHARE * len(right) for problem, right in counts.items()}
