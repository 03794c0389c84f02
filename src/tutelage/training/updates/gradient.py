"""Down the gradient of the recipe's loss, by AdamW."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from tutelage.errors import CheckpointError
from tutelage.models.finite import tensors_in
from tutelage.training.objective import BatchLoss
from tutelage.training.recipe import Recipe
from tutelage.training.token_statistics import combined
from tutelage.training.updates.backward import add_gradient
from tutelage.training.updates.base import Pending, Update, UpdateContext
from tutelage.training.updates.reward_gradients import with_reward_gradients
from tutelage.types import Batch

__all__ = ["GradientUpdate"]


@dataclass(frozen=True)
class PendingGradient(Pending):
    """A gradient that is there and not yet used.

    Fields:
      recipe: of the step.
      parts: one part of the batch per optimizer step, all of them as often as there are epochs.
      first: what was found in the first part, whose gradient it is.
    """

    recipe: Recipe
    parts: Sequence[Batch]
    first: BatchLoss

    @property
    def loss(self) -> float:
        return self.first.loss


class GradientUpdate(Update):
    """Optimizer steps on the loss of a batch: one, or several on parts of it.

    Its state is the optimizer's: AdamW's moments.
    """

    measures_rewards = True

    def __init__(self, context: UpdateContext) -> None:
        super().__init__(context)
        self.optimizer = context.settings_at(0).make(context.learner.model.module)

    def prepare(self, step: int, recipe: Recipe, collect: Callable[[], Batch]) -> PendingGradient:
        """Collect a batch, and leave the gradient of its first part on the weights."""
        batch = with_reward_gradients(self.context, step, recipe, collect())
        settings = self.context.settings_at(step)
        parts = _parts(batch, settings.updates_per_batch) * settings.epochs_per_batch
        return PendingGradient(step, batch, recipe, parts, add_gradient(self.context, step, recipe, parts[0]))

    def commit(self, pending: PendingGradient) -> dict[str, float]:
        """Take all optimizer steps; the numbers are means over them, or extremes."""
        context, settings = self.context, self.context.settings_at(pending.step)
        learning_rate = settings.rate_at(pending.step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        losses = [pending.first]
        norms = [context.runtime.update(self.optimizer, settings.max_grad_norm)]
        for part in pending.parts[1:]:
            losses.append(add_gradient(context, pending.step, pending.recipe, part))
            norms.append(context.runtime.update(self.optimizer, settings.max_grad_norm))
        context.learner.publish()
        mismatch = fmean(loss.logprob_mismatch for loss in losses)
        return {
            "loss": fmean(loss.loss for loss in losses),
            "grad_norm": fmean(norms),
            "learning_rate": learning_rate,
            **({} if math.isnan(mismatch) else {"logprob_mismatch": mismatch}),
            "weight_mean": fmean(loss.weight_mean for loss in losses),
            **combined([loss.statistics for loss in losses]),
        }

    def abandon(self) -> None:
        """Clear the gradient."""
        self.optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        return self.context.learner.moments(self.optimizer)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        try:
            sizes = [len(group["params"]) for group in state["param_groups"]]
            fits = sizes == [len(group["params"]) for group in self.optimizer.param_groups] and all(
                tensor.dim() == 0 or tensor.shape == parameters[place].shape
                for place, each in state["state"].items()
                for tensor in tensors_in(each)
            )
        except (TypeError, KeyError, IndexError, AttributeError):
            fits = False
        if not fits:
            raise CheckpointError("moments of another model than the student")
        self.context.learner.load_moments(self.optimizer, state)


def _parts(batch: Batch, number: int) -> list[Batch]:
    """A batch cut by prompts into so many, each with the answers of every `number`-th prompt.

    Processes share neighbouring prompts, so that every part has something for all of them. A part without tokens has
    nothing to teach and is left out.
    """
    if number == 1:
        return [batch]
    parts = []
    for remainder in range(number):
        places = [place for place, made in enumerate(batch.rollouts) if made.prompt_index % number == remainder]
        new = {place: index for index, place in enumerate(places)}
        part = replace(
            batch,
            rollouts=[batch.rollouts[place] for place in places],
            rewards={name: values_B[places] for name, values_B in batch.rewards.items()},
            pairs=[(new[a], new[b]) for a, b in batch.pairs if a in new and b in new],
            own=None if batch.own is None else [new[place] for place in batch.own if place in new],
        )
        if part.num_tokens:
            parts.append(part)
    return parts or [batch]
