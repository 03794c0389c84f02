"""How much does each token of a batch count?"""

from tutelage.weighting.base import Weighting, recorded_kl
from tutelage.weighting.position_decay import PositionDecay
from tutelage.weighting.tip import Tip
from tutelage.weighting.token_share import TokenShare
from tutelage.weighting.tropd import Tropd
from tutelage.weighting.uniform import UNIFORM, Uniform

WEIGHTINGS: dict[str, type[Weighting]] = {
    "uniform": Uniform,
    "tip": Tip,
    "position_decay": PositionDecay,
    "tropd": Tropd,
    "token_share": TokenShare,
}

__all__ = [
    "UNIFORM",
    "WEIGHTINGS",
    "PositionDecay",
    "Tip",
    "TokenShare",
    "Tropd",
    "Uniform",
    "Weighting",
    "recorded_kl",
]
