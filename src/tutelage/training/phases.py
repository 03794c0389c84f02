"""Which recipe holds at which step of a run?  Most runs have one phase; a warm-up is another one before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tutelage.training.optimizer import OptimizerSettings
from tutelage.training.recipe import Recipe

__all__ = ["Phase", "phase_at"]


@dataclass(frozen=True)
class Phase:
    """A recipe from one step of the run on.

    Schedules count from the phase's own first step. All else goes on through the phases: prompts, random streams, the
    optimizer's moments and its warm-up depend on the step of the run, so a phase changes nothing but what it names.

    Fields:
      recipe: the method.
      optimizer: its settings; the moments are those of the run.
      first_step: the run's step at which the phase begins.
      name: for metrics and displays; None in a run without phases.
    """

    recipe: Recipe
    optimizer: OptimizerSettings
    first_step: int = 0
    name: str | None = None

    def recipe_at(self, step: int) -> Recipe:
        """The recipe at a step of the run, with numbers in place of its schedules."""
        return self.recipe.at(step - self.first_step)


def phase_at(phases: Sequence[Phase], step: int) -> Phase:
    """The phase that a step of the run belongs to: the last one that has begun."""
    return [phase for phase in phases if phase.first_step <= step][-1]
