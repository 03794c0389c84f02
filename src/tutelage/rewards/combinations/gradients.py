"""Weights that follow the gradients of the rewards, each taken alone.

    r = S Σ_k u_k s_k r_k,   S = Σ_k |w_k|,  v_k = |w_k| / S,  s_k = 1, or -1 for a cost (w_k below 0)

A run measures g_k, the gradient by all weights that learn of what its losses make of s_k r_k alone, on the step's own
batch and before its update, and gives their inner products G[j, k] = <g_j, g_k> to the combination. That costs a
forward and backward over the batch for each reward; with `measured_every` = N, at every N-th step only. At u = v the
sum is the weighted one; multipliers are u_k / v_k. A reward with a weight of 0 is no objective.

Axis letter: K rewards.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tutelage.errors import ConfigurationError, check_inside
from tutelage.rewards.combinations.base import Combination, Ratings, State
from tutelage.schedules import Schedule, as_schedule, plain_number

__all__ = ["ConflictAverse", "GradientInfluence", "conflict_averse_weights"]

KEY = "reward_combination"
# A sum of gradients whose squared length is at most this share of the longest one's is taken for 0: of gradients in
# float32 it is rounding, and has no direction.
ZERO_SHARE = 1e-6
TOLERANCE = 1e-13  # of sums in float64
MAX_SWEEPS = 1000  # over all pairs; a few are enough unless gradients nearly coincide


@dataclass(frozen=True)
class _FollowsGradients(Combination):
    """What both forms share: multipliers of the rewards, which a measurement moves.

    Fields:
      measured_every: steps from one measurement to the next, counted from step 0.
    """

    measured_every: int = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        if self.measured_every < 1:
            raise ConfigurationError(f"{KEY}.measured_every is {self.measured_every}; expected 1 step or more.")

    def check(self, labels: Sequence[str]) -> None:
        super().check(labels)
        if len(labels) < 2:
            raise ConfigurationError(
                f"{KEY} compares the gradients of rewards, and there is one, {labels[0]!r}; expected two or more. Add "
                f"a [[reward]], or leave {KEY} out."
            )

    def measures_gradients(self, step: int) -> bool:
        return step % self.measured_every == 0

    @abstractmethod
    def multipliers(self, ratings: Ratings, state: State) -> dict[str, float]:
        """u_k / v_k by label."""

    def combine(self, ratings: Ratings, state: State) -> Tensor:
        multipliers = self.multipliers(ratings, state)
        return torch.stack([multipliers[label] * x_B for label, x_B in ratings.weighted().items()]).sum(0)

    def metrics(self, ratings: Ratings, state: State) -> dict[str, float]:
        multipliers = self.multipliers(ratings, state)
        found = {f"reward_multiplier/{label}": value for label, value in multipliers.items()}
        if ratings.gram_KK is None:
            return found
        norms_K = ratings.gram_KK.diagonal().clamp_min(0).sqrt()
        found |= {
            f"reward_gradient_norm/{label}": norm for label, norm in zip(ratings.labels, norms_K.tolist(), strict=True)
        }
        moving = [place for place, norm in enumerate(norms_K.tolist()) if norm > 0]
        pairs = [(one, other) for one in moving for other in moving if one < other]
        if pairs:
            cosines = [float(ratings.gram_KK[pair] / (norms_K[pair[0]] * norms_K[pair[1]])) for pair in pairs]
            found["reward_gradient_cosine"] = min(cosines)
        return found


@dataclass(frozen=True)
class GradientInfluence(_FollowsGradients):
    """A reward counts more if its gradient goes where the gradients of all of them go.

        u <- softmax(log u + step_size · I),   I_k = <g_k, Σ_j g_j>        (arXiv 2509.11452, part 2; its code)

    u begins at v. What is measured at a step moves the weights of the next one. The paper takes the gradients of some
    layers, and step_size = learning rate / 1e-5, which is 0.1 at its rate. I contains |g_k|², so a reward whose
    gradient stays the longest takes over in time, and with advantages that are not normalised so does one on a large
    scale; equal gradients, and orthogonal ones of equal length, leave the weights alone.

    Fields:
      step_size: 0 or more; a number or a schedule. At 0 the weights stay.
    """

    step_size: float | Schedule = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = as_schedule(self.step_size, f"{KEY}.step_size").bounds()
        check_inside(low, f"{KEY}.step_size", low >= 0 and high < math.inf, "a finite number of at least 0")

    def initial_state(self, labels: Sequence[str]) -> State:
        return {"log_multiplier": dict.fromkeys(labels, 0.0)}

    def multipliers(self, ratings: Ratings, state: State) -> dict[str, float]:
        logs_K = torch.tensor([state["log_multiplier"][label] for label in ratings.labels], dtype=torch.float64)
        shares_K = _shares(ratings)
        logs_K = logs_K - (shares_K.log() + logs_K).logsumexp(0)
        multipliers_K = torch.where(shares_K > 0, logs_K.exp(), 1.0)  # without a weight it is multiplied with 0 anyway
        return dict(zip(ratings.labels, multipliers_K.tolist(), strict=True))

    def next_state(self, ratings: Ratings, state: State) -> State:
        if ratings.gram_KK is None:
            return state
        is_objective_K = (_shares(ratings) > 0).double()
        step_size, influences = plain_number(self.step_size, f"{KEY}.step_size"), ratings.gram_KK @ is_objective_K
        moved = {
            label: state["log_multiplier"][label] + step_size * influence
            for label, influence in zip(ratings.labels, influences.tolist(), strict=True)
        }
        largest = max(moved.values())  # only differences count; so numbers stay small
        return {"log_multiplier": {label: value - largest for label, value in moved.items()}}


@dataclass(frozen=True)
class ConflictAverse(_FollowsGradients):
    """The rewards whose gradients the weighted sum neglects count more: a step near the sum's that hurts none.

        d = g_0 + c |g_0| G~ / |G~|,   g_0 = Σ_k v_k g_k,  G~ = Σ_k min(p_k, v_k) g_k        (RACO, arXiv 2602.02495)
        p = argmin over the simplex of <G_p, g_0> + c |g_0| |G_p|,   G_p = Σ_k p_k g_k        (CAGrad, arXiv 2110.14048)

    So u_k = v_k + c |g_0| min(p_k, v_k) / |G~|, and d is g_0 where G~ is 0. The minimum by v is RACO's: no reward is
    attended to beyond its weight. RACO has preference pairs and we have rewards; that d is the step's gradient is exact
    where an advantage is linear in the reward (`scale = "none"`) and for the first update on the batch. Measured and
    used in the same step; in steps without a measurement the multipliers of the last one hold. A reward without a
    gradient in a step, such as one that is the same for all answers, is left out of p: no direction helps or hurts it,
    and the minimum would be 0 by it alone.

    Fields:
      strength: c, from 0 to below 1; a number or a schedule. 0 is the weighted sum. RACO's script has 0.4.
      clipped: False = p in place of min(p, v), which is CAGrad.
    """

    strength: float | Schedule = 0.4
    clipped: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = as_schedule(self.strength, f"{KEY}.strength").bounds()
        check_inside(low, f"{KEY}.strength", low >= 0 and high < 1, "a number from 0 to below 1")

    def initial_state(self, labels: Sequence[str]) -> State:
        return {"multiplier": dict.fromkeys(labels, 1.0)}

    def multipliers(self, ratings: Ratings, state: State) -> dict[str, float]:
        if ratings.gram_KK is None:
            return dict(state["multiplier"])
        shares_K, squares_K = _shares(ratings), ratings.gram_KK.diagonal()
        has_part_K = (shares_K > 0) & (squares_K > TOLERANCE * squares_K.max())
        objectives = has_part_K.nonzero()[:, 0].tolist()
        found, gram_KK = dict.fromkeys(ratings.labels, 1.0), ratings.gram_KK[objectives][:, objectives]
        if not objectives:
            return found
        strength = plain_number(self.strength, f"{KEY}.strength")
        wanted_K = conflict_averse_weights(gram_KK, shares_K[objectives], strength)
        kept_K = torch.minimum(wanted_K, shares_K[objectives]) if self.clipped else wanted_K
        length = float(kept_K @ gram_KK @ kept_K)
        if length <= ZERO_SHARE * float(gram_KK.diagonal().max()):
            return found
        mean_length = max(0.0, float(shares_K[objectives] @ gram_KK @ shares_K[objectives]))
        factor = strength * math.sqrt(mean_length / length)
        for place, kept, share in zip(objectives, kept_K.tolist(), shares_K[objectives].tolist(), strict=True):
            found[ratings.labels[place]] = 1 + factor * kept / share
        return found

    def next_state(self, ratings: Ratings, state: State) -> State:
        return {"multiplier": self.multipliers(ratings, state)}


def conflict_averse_weights(gram_KK: Tensor, shares_K: Tensor, strength: float) -> Tensor:
    """p, the point of the simplex that minimises <G_p, g_0> + c |g_0| |G_p| (see `ConflictAverse`): [K].

    The function is convex. Weight is moved between two rewards at a time, exactly, until no move lowers it; along such
    a line it is b t + s sqrt(q (t - t0)² + e), whose minimum has a closed form.

    Args:
      gram_KK: inner products of the gradients, in float64.
      shares_K: v, above 0.
      strength: c in [0, 1).
    """
    number, towards_K = len(gram_KK), gram_KK @ shares_K  # <g_k, g_0>
    radius = strength * math.sqrt(max(0.0, float(shares_K @ towards_K)))
    weights_K, lowest = shares_K / shares_K.sum(), math.inf
    for _ in range(MAX_SWEEPS):
        for one in range(number):
            for other in range(one):
                total = weights_K[one] + weights_K[other]
                weights_K[one], weights_K[other] = 0.0, total
                moved = _best_move(gram_KK, towards_K, radius, weights_K, (one, other))
                weights_K[one], weights_K[other] = moved, total - moved
        length = max(0.0, float(weights_K @ gram_KK @ weights_K))
        value = float(weights_K @ towards_K) + radius * math.sqrt(length)
        if not value < lowest - TOLERANCE * abs(value):
            break
        lowest = value
    return weights_K


def _best_move(gram_KK: Tensor, towards_K: Tensor, radius: float, weights_K: Tensor, pair: tuple[int, int]) -> float:
    """How much of the weight of `pair[1]`, which has that of both, `pair[0]` should have."""
    one, other = pair
    most = float(weights_K[other])
    slope = float(towards_K[one] - towards_K[other])
    square = float(gram_KK[one, one] + gram_KK[other, other] - 2 * gram_KK[one, other])
    there_K = gram_KK @ weights_K
    if square <= TOLERANCE * float(gram_KK[one, one] + gram_KK[other, other]):
        return most if slope < 0 else 0.0  # the two are one gradient
    nearest = -float(there_K[one] - there_K[other]) / square
    rest = max(0.0, float(weights_K @ there_K) - square * nearest**2)
    steepest = radius**2 * square - slope**2
    if steepest <= 0:  # the slope decides everywhere
        return most if slope < 0 else 0.0
    return min(max(nearest - slope * math.sqrt(rest / (square * steepest)), 0.0), most)


def _shares(ratings: Ratings) -> Tensor:
    """v: [K], 0 everywhere if all weights are."""
    sizes_K = torch.tensor([abs(ratings.weights[label]) for label in ratings.labels], dtype=torch.float64)
    return sizes_K / sizes_K.sum() if float(sizes_K.sum()) else sizes_K
