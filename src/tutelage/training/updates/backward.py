"""The gradient of a recipe's loss on a batch, for the weights that learn."""

from __future__ import annotations

import math
from dataclasses import replace

from tutelage.errors import NonFiniteError
from tutelage.training.objective import BatchLoss, Objective
from tutelage.training.recipe import Recipe
from tutelage.training.updates.base import UpdateContext
from tutelage.types import Batch

__all__ = ["add_gradient"]


def add_gradient(context: UpdateContext, step: int, recipe: Recipe, batch: Batch) -> BatchLoss:
    """Add the gradient of a batch's loss to the weights that learn.

    Args:
      recipe: with numbers in place of its schedules.
    Raises:
      NonFiniteError: the loss is NaN or infinite.
    """
    objective = Objective(
        replace(context.models, student=context.learner.model),
        recipe,
        context.micro_batch_tokens,
        form=context.loss_form,
        seed=context.seed,
        step=step,
    )
    runtime = context.runtime
    found = objective.backward(batch, runtime.all_sum, context.learner.backward, runtime.gather)
    if not math.isfinite(found.loss):
        raise NonFiniteError(f"the loss is {found.loss}")
    return found
