"""What do other models say of answers that exist?  Models here, or a server."""

from tutelage.rollout.scorers.base import Scorer
from tutelage.rollout.scorers.full_kl import score_with_full_kl
from tutelage.rollout.scorers.local import LocalScorer, ReferenceScorer, TopScorer
from tutelage.rollout.scorers.served import RoutedScorer, ServedScorer

__all__ = [
    "LocalScorer",
    "ReferenceScorer",
    "RoutedScorer",
    "Scorer",
    "ServedScorer",
    "TopScorer",
    "score_with_full_kl",
]
