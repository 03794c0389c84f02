"""How much does each token of a batch count?"""

from tutelage.weighting.base import Weighting, recorded_kl
from tutelage.weighting.position_decay import PositionDecay
from tutelage.weighting.tip import Tip
from tutelage.weighting.tropd import Tropd
from tutelage.weighting.uniform import UNIFORM, Uniform

WEIGHTINGS: dict[str, type[Weighting]] = {
    "uniform": Uniform,
    "tip": Tip,
    "position_decay": PositionDecay,
    "tropd": Tropd,
}

__all__ = ["UNIFORM", "WEIGHTINGS", "PositionDecay", "Tip", "Tropd", "Uniform", "Weighting", "recorded_kl"]
