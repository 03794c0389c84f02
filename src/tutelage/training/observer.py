"""What a run reports while it goes on. The loop has no terminal; a display is an observer."""

from __future__ import annotations

from pathlib import Path

from tutelage.evaluation import EvaluationResult
from tutelage.types import StepResult

__all__ = ["Observer"]


class Observer:
    """Is called at every event, and does nothing; override what is of interest."""

    def on_start(self, step: int, num_steps: int) -> None:
        """The run begins or resumes at `step`."""

    def on_step(self, result: StepResult) -> None:
        """A step is done."""

    def on_evaluation(self, step: int, result: EvaluationResult) -> None:
        """An evaluation of the weights after `step` updates is done."""

    def on_checkpoint(self, step: int, path: Path) -> None:
        """A checkpoint was written."""

    def on_message(self, message: str) -> None:
        """Something a person should know."""
