"""How do several rewards become one?"""

from tutelage.rewards.combinations.base import Combination, Ratings, State, normalised_in_groups
from tutelage.rewards.combinations.constrained import Constrained, PidConstrained
from tutelage.rewards.combinations.gradients import ConflictAverse, GradientInfluence, conflict_averse_weights
from tutelage.rewards.combinations.hypervolume import Hypervolume, hypervolume
from tutelage.rewards.combinations.min_norm import MinNorm
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
    "gradient_influence": GradientInfluence,
    "conflict_averse": ConflictAverse,
    "min_norm": MinNorm,
}

__all__ = [
    "COMBINATIONS",
    "Combination",
    "ConflictAverse",
    "Constrained",
    "GradientInfluence",
    "Hypervolume",
    "LowerConfidenceBound",
    "MinNorm",
    "NormalisedSum",
    "PidConstrained",
    "Progress",
    "Ratings",
    "State",
    "WeightedSum",
    "WorstCase",
    "conflict_averse_weights",
    "hypervolume",
    "normalised_in_groups",
]
