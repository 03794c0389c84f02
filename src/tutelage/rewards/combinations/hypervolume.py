"""A factor on all rewards that rewards progress of the Pareto front."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from tutelage.rewards.combinations.base import Combination, Ratings, State

__all__ = ["Hypervolume", "hypervolume"]

Point = tuple[float, ...]


@dataclass(frozen=True)
class Hypervolume(Combination):
    """r = f Σ w_i r_i, with a factor f of the step in [0.5, 2) that says how much the step before moved the front.

        f = 0.5 + 1.5 tanh(dV),   dV = V(front with the step's mean rewards) - V(front)       (arXiv 2509.11452, 1)

    V is the volume that the front dominates, seen from the first step's means; f is 1 in the first two steps. The paper
    takes means over a validation set after each step; here they are the batch's. A reward with a weight below 0 is
    minimised. Without progress f is 0.5 and not 1.

    CAUTION. The factor is one number for the whole batch, so an advantage that divides by a group's deviation takes it
    out again: under GRPO it does nothing but through the 1e-4 beside the deviation. It acts where advantages are not
    normalised (RLOO, Dr. GRPO, REINFORCE), as a factor on the step's learning rate.
    """

    def initial_state(self, labels: Sequence[str]) -> State:
        return {"reference": None, "front": [], "factor": 1.0}

    def combine(self, ratings: Ratings, state: State) -> Tensor:
        factor: float = state["factor"]
        return factor * ratings.members().sum(0)

    def next_state(self, ratings: Ratings, state: State) -> State:
        point = tuple(ratings.signed(ratings.means).values())
        if state["reference"] is None:
            return {"reference": list(point), "front": [], "factor": 1.0}
        gain = [here - there for here, there in zip(point, state["reference"], strict=True)]
        front = [tuple(each) for each in state["front"]]
        grown = _undominated([*front, tuple(gain)]) if min(gain) > 0 else front
        progress = max(0.0, hypervolume(grown) - hypervolume(front))
        return {
            "reference": state["reference"],
            "front": [list(each) for each in (grown if progress > 0 else front)],
            "factor": 0.5 + 1.5 * math.tanh(progress),
        }

    def metrics(self, ratings: Ratings, state: State) -> dict[str, float]:
        return {"reward_factor": state["factor"]}


def hypervolume(points: Sequence[Point]) -> float:
    """Volume of the union of the boxes from 0 to each of the points; exact, by slicing along the last coordinate.

    Coordinates below 0 count as 0. Exponential in the number of coordinates.
    """
    if not points:
        return 0.0
    if len(points[0]) == 1:
        return max(0.0, max(point[0] for point in points))
    ordered = sorted(points, key=lambda point: point[-1], reverse=True)
    volume = 0.0
    for place, point in enumerate(ordered):
        below = ordered[place + 1][-1] if place + 1 < len(ordered) else 0.0
        height = max(0.0, point[-1]) - max(0.0, below)
        if height > 0:
            volume += height * hypervolume([each[:-1] for each in ordered[: place + 1]])
    return volume


def _undominated(points: Sequence[Point]) -> list[Point]:
    """Without points that another one is at least equal to everywhere; the front then stays small."""

    def is_beaten(point: Point) -> bool:
        return any(other != point and all(o >= p for o, p in zip(other, point, strict=True)) for other in points)

    return [point for point in dict.fromkeys(points) if not is_beaten(point)]
