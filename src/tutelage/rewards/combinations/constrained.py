"""One objective under constraints: some rewards are to reach a threshold on average, the others are maximised.

    maximise J_0   subject to   J_i >= theta_i  for every reward i with a threshold, J_i <= theta_i for a cost

J_i is the mean of reward i over a batch, which is a cost if its weight is below 0, and J_0 that of the weighted sum of
all rewards without a threshold. Where every reward has one, J_0 is 0, and what the constraints leave open is left to
the losses, such as a KL to a reference. A constraint that is not met shows as a slack below 0, and one that cannot be
met as a multiplier that stays at its largest value; both are metrics.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tutelage.errors import ConfigurationError, check_inside
from tutelage.rewards.combinations.base import Combination, Ratings, State

__all__ = ["Constrained", "PidConstrained"]

KEY = "reward_combination"
NEARLY = 0.95  # of the largest multiplier, which a sigmoid never reaches


@dataclass(frozen=True)
class _UnderConstraints(Combination):
    """What both forms share: thresholds, and a multiplier for each.

    Fields:
      thresholds: label -> theta.
      normalised: normalise each reward among the answers to a prompt before it is weighed; thresholds are compared with
        the rewards as they are.
    """

    thresholds: Mapping[str, float] = field(default_factory=dict)
    normalised: bool = False

    def __post_init__(self) -> None:
        try:
            thresholds = {label: float(value) for label, value in dict(self.thresholds).items()}
        except (TypeError, ValueError):
            thresholds = {}
        if not thresholds or not all(map(math.isfinite, thresholds.values())):
            raise ConfigurationError(
                f"{KEY}.thresholds is {self.thresholds!r}; expected a finite number for one reward at least. Write "
                f"{KEY}.thresholds.LABEL = 0.5, with the label of a reward."
            )
        object.__setattr__(self, "thresholds", thresholds)

    def check(self, labels: Sequence[str]) -> None:
        super().check(labels)
        unknown = sorted(self.thresholds.keys() - set(labels))
        if unknown:
            raise ConfigurationError(
                f"{KEY}.thresholds has {unknown[0]!r}, and the rewards are {', '.join(labels)}; expected labels of "
                "these. Correct it."
            )

    @property
    def compares_answers(self) -> bool:
        return self.normalised

    @abstractmethod
    def multipliers(self, state: State) -> dict[str, float]:
        """What each constrained reward is multiplied with, by label."""

    @abstractmethod
    def objective_factor(self, multipliers: Mapping[str, float]) -> float:
        """What the weighted sum of the other rewards is multiplied with."""

    def scale(self, multipliers: Mapping[str, float]) -> float:
        """What all of the sum is divided by."""
        return 1.0

    def combine(self, ratings: Ratings, state: State) -> Tensor:
        multipliers = self.multipliers(state)
        free = self.objective_factor(multipliers)
        weighted = ratings.weighted(normalised=self.normalised)
        terms = [multipliers.get(label, free) * values_B for label, values_B in weighted.items()]
        return torch.stack(terms).sum(0) / self.scale(multipliers)

    def slacks(self, ratings: Ratings) -> dict[str, float]:
        """J_i - theta_i for every constrained reward, theta_i - J_i for a cost; 0 or more where it is met."""
        means = ratings.means
        return ratings.signed({label: means[label] - threshold for label, threshold in self.thresholds.items()})

    @property
    @abstractmethod
    def largest_multiplier(self) -> float:
        """What no multiplier exceeds."""

    def unmet(self, ratings: Ratings, state: State) -> dict[str, str]:
        multipliers, slacks, means = self.multipliers(state), self.slacks(ratings), ratings.means
        return {
            label: f"the constraint on the reward {label!r} is not met: its mean is {means[label]:.3g} and its "
            f"threshold {self.thresholds[label]:g}, under a multiplier of {multipliers[label]:.3g}, which is about as "
            f"large as it becomes. Choose a threshold that can be reached, see the metric reward_slack/{label}."
            for label, slack in slacks.items()
            if slack < 0 and multipliers[label] >= NEARLY * self.largest_multiplier
        }

    def metrics(self, ratings: Ratings, state: State) -> dict[str, float]:
        multipliers, slacks = self.multipliers(state), self.slacks(ratings)
        return {f"reward_multiplier/{label}": value for label, value in multipliers.items()} | {
            f"reward_slack/{label}": value for label, value in slacks.items()
        }


@dataclass(frozen=True)
class Constrained(_UnderConstraints):
    """Lagrange multipliers that learn, kept in bounds by a sigmoid or a tanh.

        r = (N - Σ_i l_i) r_0 + Σ_i l_i w_i r_i        l_i = sigmoid(u_i) or tanh(u_i), N constraints
        u_i <- u_i - rate v_i,   v_i <- momentum v_i + dl_i/du_i (J_i - theta_i)        (arXiv 2310.04373)

    u_i rises while the threshold is not reached, and falls beyond it. With the sigmoid, J_i >= theta_i (the paper's
    mu-PPO): l_i goes to 0. With the tanh, J_i = theta_i (xi-PPO): it goes to -1, and the reward is pushed back. The
    paper mixes advantages, and normalises each over the batch: `normalised` is the nearest to that here. We begin at
    u = 0, where its code draws a number of deviation 0.01, and do not clip the gradient, which the slack bounds.

    Fields:
      squash: "sigmoid" or "tanh".
      learning_rate, momentum: of the multipliers.
    """

    squash: str = "sigmoid"
    learning_rate: float = 0.1
    momentum: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.squash not in ("sigmoid", "tanh"):
            raise ConfigurationError(
                f"{KEY}.squash is {self.squash!r}; expected 'sigmoid' (at least the threshold) or 'tanh' (exactly it)."
                " Leave it out for 'sigmoid'."
            )
        rate, momentum = self.learning_rate, self.momentum
        check_inside(rate, f"{KEY}.learning_rate", 0 < rate < math.inf, "a finite number above 0")
        check_inside(momentum, f"{KEY}.momentum", 0 <= momentum < 1, "a number from 0 to below 1")

    @property
    def largest_multiplier(self) -> float:
        return 1.0

    def initial_state(self, labels: Sequence[str]) -> State:
        nothing = dict.fromkeys(self.thresholds, 0.0)
        return {"u": nothing, "velocity": dict(nothing)}

    def multipliers(self, state: State) -> dict[str, float]:
        return {label: self._squashed(u) for label, u in state["u"].items()}

    def objective_factor(self, multipliers: Mapping[str, float]) -> float:
        return len(multipliers) - math.fsum(multipliers.values())

    def next_state(self, ratings: Ratings, state: State) -> State:
        u, velocity = dict(state["u"]), dict(state["velocity"])
        for label, slack in self.slacks(ratings).items():
            squashed = self._squashed(u[label])
            slope = 1 - squashed**2 if self.squash == "tanh" else squashed * (1 - squashed)
            velocity[label] = self.momentum * velocity[label] + slope * slack
            u[label] -= self.learning_rate * velocity[label]
        return {"u": u, "velocity": velocity}

    def _squashed(self, u: float) -> float:
        return math.tanh(u) if self.squash == "tanh" else (1 + math.tanh(u / 2)) / 2


@dataclass(frozen=True)
class PidConstrained(_UnderConstraints):
    """Lagrange multipliers set by a PID controller, which damps the swings that learning them has.

        r = (r_0 + Σ_i l_i w_i r_i) / (1 + Σ_i l_i)
        l_i = max(0, K_p e_i + K_i I_i + K_d D_i),   e_i = theta_i - J_i
        I_i <- max(0, I_i + e_i),   D_i = max(0, earlier J_i - J_i)     (Stooke et al., arXiv 2007.03964, algorithm 2)

    e_i, and J_i for D_i, are exponential means over steps, with the share `smoothing` of the past; the first step
    begins them, and D_i is 0 then. J_i and theta_i of a cost change sign. `max_multiplier` bounds what the integral can
    reach under a constraint that cannot be met.

    Fields:
      proportional, integral, derivative: K_p, K_i and K_d, 0 or more.
      smoothing: from 0 to below 1; 0 = none.
      max_multiplier: largest l_i, and K_i I_i is kept at most this.
    """

    proportional: float = 0.5
    integral: float = 0.1
    derivative: float = 0.1
    smoothing: float = 0.0
    max_multiplier: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("proportional", "integral", "derivative"):
            gain = getattr(self, name)
            check_inside(gain, f"{KEY}.{name}", 0 <= gain < math.inf, "a finite number of at least 0")
        smoothing, largest = self.smoothing, self.max_multiplier
        check_inside(smoothing, f"{KEY}.smoothing", 0 <= smoothing < 1, "a share from 0 to below 1")
        check_inside(largest, f"{KEY}.max_multiplier", 0 < largest < math.inf, "a finite number above 0")

    @property
    def largest_multiplier(self) -> float:
        return self.max_multiplier

    def initial_state(self, labels: Sequence[str]) -> State:
        nothing = dict.fromkeys(self.thresholds, 0.0)
        return {"multiplier": nothing, "integral": dict(nothing), "error": {}, "mean": {}}

    def multipliers(self, state: State) -> dict[str, float]:
        return dict(state["multiplier"])

    def objective_factor(self, multipliers: Mapping[str, float]) -> float:
        return 1.0

    def scale(self, multipliers: Mapping[str, float]) -> float:
        return 1.0 + math.fsum(multipliers.values())

    def next_state(self, ratings: Ratings, state: State) -> State:
        past, means, slacks = self.smoothing, ratings.signed(ratings.means), self.slacks(ratings)
        after: dict[str, dict[str, float]] = {"multiplier": {}, "integral": {}, "error": {}, "mean": {}}
        for label, slack in slacks.items():
            error, before = -slack, state["mean"].get(label, means[label])
            integral = max(0.0, state["integral"][label] + error)
            if self.integral:
                integral = min(integral, self.max_multiplier / self.integral)
            after["integral"][label] = integral
            after["error"][label] = past * state["error"].get(label, error) + (1 - past) * error
            after["mean"][label] = past * before + (1 - past) * means[label]
            wanted = (
                self.proportional * after["error"][label]
                + self.integral * integral
                + self.derivative * max(0.0, before - after["mean"][label])
            )
            after["multiplier"][label] = min(max(0.0, wanted), self.max_multiplier)
        return after
