"""The student as it was: a copy that is refreshed every so many steps.

At step k the copy has the weights of step m · every, the last multiple that is not beyond k. At a multiple the copy is
the student itself, so a checkpoint of such a step need not hold it; any other does, and a resumed run looks back at the
same weights as one that was not interrupted.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tutelage.models import LanguageModel
from tutelage.training.checkpoint_files import load_past

__all__ = ["PastSelf"]


@dataclass(frozen=True)
class PastSelf:
    """The reference of a run, as a copy of its student.

    Fields:
      student: learns.
      reference: of the same shape; None = the run has none.
      every: steps between refreshes; 0 = the reference is another model, or stays what it was at the start.
    """

    student: LanguageModel
    reference: LanguageModel | None
    every: int

    def to_save(self, step: int) -> LanguageModel | None:
        """What a checkpoint of this step must hold: the copy, unless it is about to be refreshed."""
        return self.reference if self.every and step % self.every else None

    def restore(self, step: int, checkpoint: Path) -> None:
        """Take from a checkpoint of this step what `to_save` put there."""
        past = self.to_save(step)
        if past is not None:
            load_past(checkpoint, past)

    def refresh(self, step: int) -> None:
        """Copy the student if this step is one to do so. Call it before the step's rollouts."""
        if self.reference is not None and self.every and step % self.every == 0:
            self.reference.load_learned(self.student.learned())
