"""How do several rewards become one?"""

from tutelage.rewards.combinations.base import Combination, Ratings, State, normalised_in_groups
from tutelage.rewards.combinations.constrained import Constrained, PidConstrained
from tutelage.rewards.combinations.hypervolume import Hypervolume, hypervolume
from tutelage.rewards.combinations.pessimistic import LowerConfidenceBound, WorstCase
from tutelage.rewards.combinations.progress import Progress
from tutelage.rewards.combinations.sums import NormalisedSum, WeightedSum

COMBINATIONS: dict[str, type[Combination]] = {
    "weighted_sum": WeightedSum,
    "normalised_sum": NormalisedSum,
    "worst_case": WorstCase,
    "lower_confidence_bound": LowerConfidenceBound,
    "constrained": Constrained,
    "pid_constrained": PidConstrained,
    "progress": Progress,
    "hypervolume": Hypervolume,
}

__all__ = [
    "COMBINATIONS",
    "Combination",
    "Constrained",
    "Hypervolume",
    "LowerConfidenceBound",
    "NormalisedSum",
    "PidConstrained",
    "Progress",
    "Ratings",
    "State",
    "WeightedSum",
    "WorstCase",
    "hypervolume",
    "normalised_in_groups",
]
