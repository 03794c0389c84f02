"""Which tables hold at which step?  A run with `[[phase]]` tables is one run configuration after another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from tutelage.config.schema import AXES, PhaseConfig, RunConfig
from tutelage.errors import ConfigurationError

__all__ = ["PhaseTables", "phase_tables"]


@dataclass(frozen=True)
class PhaseTables:
    """What a run file says from one step on.

    Fields:
      name: of the phase; its place, counted from 1, where it has none; None in a run without phases.
      first_step: the run's step at which it begins.
      config: the run, with the phase's tables in place of its own.
    """

    name: str | None
    first_step: int
    config: RunConfig


def phase_tables(config: RunConfig) -> list[PhaseTables]:
    """The phases of a run in their order; steps after the last of them belong to the run's own tables.

    Raises:
      ConfigurationError: phases that do not fit into the run's steps, one without a number of steps before the last,
        two of one name.
    """
    if not config.phase:
        return [PhaseTables(None, 0, config)]
    phases = list(config.phase)
    starts = _starts(phases, config.steps)
    if phases[-1].steps is not None and starts[-1] < config.steps:
        phases.append(PhaseConfig())
    names = [phase.name or str(place) for place, phase in enumerate(phases, start=1)]
    for name in names:
        if names.count(name) > 1:
            raise ConfigurationError(f"two phases are called {name!r}; metrics tell them apart by name. Rename one.")
    configs = [_with_tables_of(phase, config) for phase in phases]
    return [PhaseTables(*values) for values in zip(names, starts, configs, strict=False)]


def _starts(phases: Sequence[PhaseConfig], num_steps: int) -> list[int]:
    """First steps of the phases and, where the last one has an end, the step after it."""
    for place, phase in enumerate(phases[:-1], start=1):
        if phase.steps is None:
            raise ConfigurationError(
                f"phase {phase.name or str(place)!r} has no steps, and another one follows. Set its steps; only the "
                "last phase may leave them out, and then goes on to the end of the run."
            )
    starts = list(accumulate((phase.steps for phase in phases if phase.steps is not None), initial=0))
    is_open = phases[-1].steps is None
    if starts[-1] + is_open > num_steps:
        remedy = "The last one, which goes on to the end, needs one at least. " if is_open else ""
        raise ConfigurationError(
            f"the phases have {starts[-1]} steps in all, but the run has {num_steps}. {remedy}Raise steps, or shorten "
            f"a phase with --set phase.{phases[0].name or 1}.steps=..."
        )
    return starts


def _with_tables_of(phase: PhaseConfig, config: RunConfig) -> RunConfig:
    given = {axis: getattr(phase, axis) for axis in (*AXES, "loss") if getattr(phase, axis) is not None}
    if given.keys() & {"divergence", "loss"}:
        given = {"divergence": None, "loss": [], **given}
    rate = config.optimizer.learning_rate if phase.learning_rate is None else phase.learning_rate
    return config.model_copy(update={**given, "optimizer": replace(config.optimizer, learning_rate=rate)})
