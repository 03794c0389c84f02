"""How does each reward alone pull at the weights?  For combinations that follow it.

Axis letter: K rewards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tutelage.errors import NonFiniteError
from tutelage.rewards import COMBINED
from tutelage.runtime.local import gathered
from tutelage.training.recipe import Recipe
from tutelage.training.updates.backward import add_gradient
from tutelage.training.updates.base import UpdateContext
from tutelage.types import Batch

__all__ = ["with_reward_gradients"]

Gradient = Sequence[Tensor | None]
"""Of each weight that learns; None = nothing depends on it."""


def with_reward_gradients(context: UpdateContext, step: int, recipe: Recipe, batch: Batch) -> Batch:
    """The batch with the inner products of its rewards' gradients, and combined anew; as it is where none are read.

    One gradient for each reward, at the weights of now, of the losses that read the combined reward, as if it were the
    only one. Nothing is left on the weights.

    Args:
      recipe: with numbers in place of its schedules.
    Raises:
      NonFiniteError: a gradient is NaN or infinite.
      RewardError: the combined reward is not finite.
    """
    rating, losses = context.rating, tuple(loss for loss in recipe.rewarded_by(COMBINED) if loss.factor)
    if rating is None or not losses or not batch.num_tokens or not rating.combination.measures_gradients(step):
        return batch
    alone = replace(recipe, losses=losses)
    gradients = [
        _gradient(context, step, alone, replace(batch, rewards={**batch.rewards, COMBINED: values_B}))
        for values_B in rating.alone(batch, step)
    ]
    gram_KK = torch.tensor([[_inner(one, other) for other in gradients] for one in gradients], dtype=torch.float64)
    if not bool(gram_KK.isfinite().all()):
        raise NonFiniteError("the gradient of a single reward is not finite")
    return rating.recombined(batch, gram_KK, step)


def _gradient(context: UpdateContext, step: int, recipe: Recipe, batch: Batch) -> Gradient:
    """Of the batch's loss, summed over processes and taken off the weights."""
    weights = [weight for weight in context.learner.model.module.parameters() if weight.requires_grad]
    add_gradient(context, step, recipe, batch)
    context.runtime.sum_gradients(weights)
    found = [weight.grad for weight in weights]
    for weight in weights:
        weight.grad = None
    return found


def _inner(one: Gradient, other: Gradient) -> float:
    """Their inner product, the same in all processes; the host waits for it once."""
    return float(sum(gathered(_dot(a, b)) for a, b in zip(one, other, strict=True) if a is not None and b is not None))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    wide = torch.promote_types(a.dtype, torch.float32)
    # Not every device has float64; the products are rounded in float32 in any case.
    return (a.to(wide) * b.to(wide)).sum(dtype=wide if a.device.type == "mps" else torch.float64)
