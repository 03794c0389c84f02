"""How far is the student from its target? The members of `tutelage.losses` under the field's own word."""

from tutelage.losses import LOSSES as DIVERGENCES
from tutelage.losses import distributions, support, tokens
from tutelage.losses.base import DistributionLoss as Divergence
from tutelage.losses.distributions import *  # noqa: F403
from tutelage.losses.support import *  # noqa: F403
from tutelage.losses.tokens import *  # noqa: F403

__all__ = ["DIVERGENCES", "Divergence", *distributions.__all__, *support.__all__, *tokens.__all__]
