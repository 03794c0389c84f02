"""How do the weights change?"""

from tutelage.training.updates.backward import add_gradient
from tutelage.training.updates.base import Pending, Update, UpdateContext
from tutelage.training.updates.gradient import GradientUpdate

__all__ = ["UPDATES", "GradientUpdate", "Pending", "Update", "UpdateContext", "add_gradient"]

# Every update by the name that `optimizer.name` calls it in a run file.
UPDATES: dict[str, type[Update]] = {"adamw": GradientUpdate}
