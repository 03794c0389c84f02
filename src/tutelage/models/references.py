"""The third model of a run, that targets compare with: it stays as it is, or follows the student.

What stays is another model, or the student as it was at the start. Where an adapter learns, that is the student's own
backbone with the adapter's first weights: at the start an adapter changes nothing, so a reference costs no second copy
of the base. What follows is such a copy with later weights phi, moved towards the student's theta every so many steps:

    phi <- a theta + (1 - a) phi        a = share; a = 1 copies the student
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from tutelage.errors import ConfigurationError
from tutelage.models.caches import CachedRows
from tutelage.models.language_model import LanguageModel

__all__ = ["MovingReference", "Reference", "SharedBackbone", "reference_snapshot"]


class Reference:
    """How a run's third model changes from step to step. This one does not change, or there is none."""

    def refresh(self, step: int) -> None:
        """Let it follow the student, if this step is one to do so. Call it once, when the step's weights are there."""

    def state_at(self, step: int) -> dict[str, Tensor] | None:
        """What a checkpoint of this step must hold of it; None = nothing."""
        return None

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take what `state_at` gave."""


@dataclass(frozen=True)
class MovingReference(Reference):
    """A copy of the student that follows it, at step 0 and at every multiple of so many steps.

    At step 0 the copy is the student, whatever the share.

    Fields:
      student: learns.
      model: of the same shape, with the student's weights of the start; in float32 or float64 if the share is below 1,
        since a mean moves by less than narrower types resolve.
      every: steps between two refreshes.
      share: a of the formula, 0 < a <= 1.
    Raises:
      ConfigurationError: a number that cannot work.
    """

    student: LanguageModel
    model: LanguageModel
    every: int
    share: float = 1.0

    def __post_init__(self) -> None:
        if self.every < 1 or not 0 < self.share <= 1:
            raise ConfigurationError(
                f"reference.refresh_every is {self.every} and reference.share {self.share}; expected at least 1 step, "
                "and a share above 0 and at most 1."
            )

    def refresh(self, step: int) -> None:
        if step % self.every:
            return
        theta = self.student.trainable_state()
        if self.share == 1:
            self.model.load_trainable_state(theta)
        else:
            _move(self.model.trainable_state(), theta, self.share)

    def state_at(self, step: int) -> dict[str, Tensor] | None:
        """The copy, unless it is the student of this step."""
        return None if self.share == 1 and step % self.every == 0 else self.model.trainable_state()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.model.load_trainable_state(state)


@torch.no_grad()
def _move(phi: Mapping[str, Tensor], theta: Mapping[str, Tensor], share: float) -> None:
    """phi <- share theta + (1 - share) phi, in place; what are no floating-point numbers is copied."""
    moved = set[int]()
    for name, mean in phi.items():
        if mean.data_ptr() in moved:  # a tied weight has two names
            continue
        moved.add(mean.data_ptr())
        if mean.is_floating_point():
            mean.lerp_(theta[name].to(mean), share)
        else:
            mean.copy_(theta[name])


@dataclass
class SharedBackbone(LanguageModel):
    """A model that reads with other values of what learns in it. Made by `reference_snapshot`; learns nothing."""

    kept: Mapping[str, Tensor] = field(default_factory=dict, repr=False)

    def prefill(self, sequences: Sequence[Sequence[int]], max_tokens: int = 16_384) -> CachedRows:
        """See `LanguageModel.prefill`."""
        with self.trainable.replaced_by(self.kept):
            return super().prefill(sequences, max_tokens)

    @torch.no_grad()
    def hidden_packed(self, sequences: Sequence[Sequence[int]], starts: Sequence[int] | None = None) -> Tensor:
        """See `LanguageModel.hidden_packed`."""
        with self.trainable.replaced_by(self.kept):
            return super().hidden_packed(sequences, starts)

    @torch.no_grad()
    def hidden_cached(self, tokens_BT: Tensor, positions_BT: Tensor, cache: CachedRows, num_visible: int) -> Tensor:
        """See `LanguageModel.hidden_cached`."""
        with self.trainable.replaced_by(self.kept):
            return super().hidden_cached(tokens_BT, positions_BT, cache, num_visible)

    def trainable_state(self) -> dict[str, Tensor]:
        """The values that it reads with."""
        return dict(self.kept)

    def load_trainable_state(self, state: Mapping[str, Tensor]) -> None:
        """Keep a copy of these values instead."""
        self.kept = {name: state[name].detach().to(self.device, copy=True) for name in self.kept}


def reference_snapshot(student: LanguageModel) -> LanguageModel:
    """The student as it is now, whatever it learns later: on its own backbone, or a copy where that is what learns."""
    if student.trainable.changes_backbone:
        trainable = copy.deepcopy(student.trainable)
        trainable.module.requires_grad_(False)
        return replace(student, module=trainable.module, trainable=trainable)
    kept = {name: weight.clone() for name, weight in student.trainable_state().items()}
    return SharedBackbone(
        student.module, student.tokenizer, student.stop_ids, student.name, trainable=student.trainable, kept=kept
    )
