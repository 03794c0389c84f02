"""What is one term of the objective?"""

from tutelage.losses.base import DistributionLoss, LayerLoss, Loss, PairFacts, PairLoss, TokenFacts, TokenLoss
from tutelage.losses.distributions import DISTRIBUTION_LOSSES
from tutelage.losses.layers import LAYER_LOSSES
from tutelage.losses.pairs import PAIR_LOSSES
from tutelage.losses.support import FULL_VOCABULARY, FullVocabulary, StudentTopK, Support, TeacherTopK, UnionTopK
from tutelage.losses.tokens import TOKEN_LOSSES

LOSSES: dict[str, type[Loss]] = {**DISTRIBUTION_LOSSES, **TOKEN_LOSSES, **LAYER_LOSSES, **PAIR_LOSSES}

__all__ = [
    "DISTRIBUTION_LOSSES",
    "FULL_VOCABULARY",
    "LAYER_LOSSES",
    "LOSSES",
    "PAIR_LOSSES",
    "TOKEN_LOSSES",
    "DistributionLoss",
    "FullVocabulary",
    "LayerLoss",
    "Loss",
    "PairFacts",
    "PairLoss",
    "StudentTopK",
    "Support",
    "TeacherTopK",
    "TokenFacts",
    "TokenLoss",
    "UnionTopK",
]
