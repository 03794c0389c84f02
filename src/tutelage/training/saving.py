"""When a run is saved, and where it goes on when it is resumed."""

from __future__ import annotations

from tutelage.training.checkpoint import Checkpoints
from tutelage.training.checkpoint_files import (
    TrainerState,
    load_update,
    read_state,
    restore_rating,
    restore_reference,
)
from tutelage.training.observer import Observer
from tutelage.training.run import Run
from tutelage.training.updates import Update

__all__ = ["Saver"]


class Saver:
    """Writes the checkpoints of a run. It owns `saved_step`, that of the newest one; None = there is none yet.

    Args:
      update: whose state a checkpoint holds.
      observer: called at every checkpoint.
    """

    def __init__(self, run: Run, update: Update, observer: Observer) -> None:
        self.run, self.update, self.observer = run, update, observer
        # As they stand when the run goes on: the folder has been opened, and what was accepted is noted in it.
        recorded = run.folder.read_fingerprints() or {}
        inputs = {name: recorded[name] for name in ("inputs", "accepted") if recorded.get(name)}
        self.checkpoints = Checkpoints(run.folder.checkpoints, run.checkpoint, inputs)
        self.saved_step: int | None = None

    def restored(self) -> TrainerState:
        """Where the run begins: at the checkpoint that it is resumed from, or at its start.

        Raises:
          CheckpointError: a file of the checkpoint is damaged.
        """
        run, state = self.run, TrainerState(seed=self.run.source.seed)
        checkpoint, reference = run.start.checkpoint, run.learning.reference
        if checkpoint is None:
            reference.refresh(0)
        else:
            state = read_state(checkpoint)
            load_update(checkpoint, self.update)
            restore_reference(checkpoint, reference, state.step)
            restore_rating(checkpoint, run.source.rating, state)
            run.runtime.from_first(lambda: self.checkpoints.repair_index(state))
            self.saved_step = state.step
        if run.start.is_resumed:
            run.folder.truncate_to(state.step)
        return state

    def is_due(self, state: TrainerState, *, is_best: bool) -> bool:
        """Whether the run should be saved now. `is_best`: no weights were better."""
        is_due = state.step % self.run.checkpoint.every == 0 and state.step > 0
        return self.saved_step != state.step and (is_due or is_best or state.step == self.run.num_steps)

    def save(self, state: TrainerState) -> None:
        """Write a checkpoint, unless there is one of this step.

        Raises:
          CheckpointError: it could not be written; the previous one stays.
          NonFiniteError: weights, or the update's state, are NaN or infinite.
        """
        if self.saved_step == state.step:
            return
        models, update_state = self.run.models, self.update.state_dict()
        kept = self.run.learning.reference.state_at(state.step)
        if (rating := self.run.source.rating) is not None:
            state.rating = dict(rating.state)
        # All wait for it: a launcher that sees one process gone would end the one that writes.
        path = self.run.runtime.from_first(
            lambda: self.checkpoints.save(state, models.student, models.vocabulary, update_state, kept)
        )
        self.saved_step = state.step
        self.observer.on_checkpoint(state.step, path)
