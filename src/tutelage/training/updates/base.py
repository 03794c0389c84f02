"""What every update has: it is prepared, then made, and it has a state that a checkpoint holds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from tutelage.models import ModelSet
from tutelage.rewards import Rating
from tutelage.runtime import Learner, LocalRuntime
from tutelage.training.forms import DEFAULT_LOSS_FORM
from tutelage.training.optimizer import OptimizerSettings
from tutelage.training.recipe import Recipe
from tutelage.types import Batch

__all__ = ["Pending", "Update", "UpdateContext"]


@dataclass(frozen=True)
class UpdateContext:
    """What an update works on, and with which settings.

    Fields:
      models: the student that decodes, the teachers, the reference.
      learner: the weights that learn.
      runtime: where it runs, alone or among others.
      settings_at: the settings of the update at a step of the run; phases may differ in their learning rate.
      seed: of the run.
      micro_batch_tokens: most tokens in one forward and backward.
      loss_form: see `training.forms`.
      rating: what the answers of the run are worth, if anything but right or wrong.
    """

    models: ModelSet
    learner: Learner
    runtime: LocalRuntime
    settings_at: Callable[[int], OptimizerSettings]
    seed: int
    micro_batch_tokens: int
    loss_form: str = DEFAULT_LOSS_FORM
    rating: Rating | None = None


@dataclass(frozen=True)
class Pending:
    """An update that is prepared and not made: the weights are still what they were.

    Fields:
      step: of the run.
      batch: what the update learns from; metrics and samples of the step are about it.
    """

    step: int
    batch: Batch

    @property
    def loss(self) -> float | None:
        """Of the batch, or of its first part, at the weights of now; None = this update does not compute it."""
        return None


class Update(ABC):
    """How the weights change at a step. A member of `UPDATES`, made from an `UpdateContext`.

    It owns what changes from step to step beside the weights, such as AdamW's moments, and gives it out as its state.

    Class fields that a member may override:
      settings: what [optimizer] says; a member with fields of its own adds them to `OptimizerSettings`.
      measures_rewards: it measures the gradients of single rewards where their combination reads them.
    """

    settings: ClassVar[type[OptimizerSettings]] = OptimizerSettings
    measures_rewards: ClassVar[bool] = False

    def __init__(self, context: UpdateContext) -> None:
        self.context = context

    @abstractmethod
    def prepare(self, step: int, recipe: Recipe, collect: Callable[[], Batch]) -> Any:
        """Do all that a step needs before its weights may change.

        May be interrupted anywhere: nothing that it does outlives `abandon`.

        Args:
          step: of the run.
          recipe: with numbers in place of its schedules.
          collect: makes a batch with the weights as they are when it is called.
        Returns:
          a `Pending`, for `commit`.
        Raises:
          NonFiniteError: what is to be minimised is NaN or infinite.
        """

    @abstractmethod
    def commit(self, pending: Any) -> dict[str, float]:
        """Change the weights, and return numbers about it, see `diagnostics.METRICS`. Must not be interrupted.

        Raises:
          NonFiniteError: the step cannot be made, or the weights or the state are NaN or infinite after it.
        """

    @abstractmethod
    def abandon(self) -> None:
        """Forget what an interrupted `prepare` has left: weights and state are those of the last `commit`."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values from which `load_state_dict` goes on to the same bytes.

        Of several processes all must call it; the first one gets all of it.
        """

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the state that `state_dict` gave.

        Raises:
          CheckpointError: it is no state of this update for these weights; says in a few words what it is instead.
        """
