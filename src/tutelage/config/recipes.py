"""Which method is this?  From the tables of a run file to the recipe of each phase."""

from __future__ import annotations

from dataclasses import replace

from tutelage.config.compatibility import check_facts
from tutelage.config.consistency import check_addresses, check_reference
from tutelage.config.parts import losses_from, part_from
from tutelage.config.phases import phase_tables
from tutelage.config.schema import RunConfig
from tutelage.errors import ConfigurationError
from tutelage.policies import POLICIES
from tutelage.targets import TARGETS
from tutelage.training import Phase, Recipe
from tutelage.weighting import WEIGHTINGS

__all__ = ["build_phases", "build_recipe"]


def build_recipe(config: RunConfig) -> Recipe:
    """The method that a configuration names."""
    return Recipe(
        policy=part_from(config.policy, POLICIES, "policy"),
        target=part_from(config.target, TARGETS, "target"),
        losses=losses_from(config),
        weighting=part_from(config.weighting, WEIGHTINGS, "weighting"),
    )


def build_phases(config: RunConfig) -> list[Phase]:
    """The recipes of a run, one after another; a run without phases is one."""
    check_addresses(config)
    phases = []
    for tables in phase_tables(config):
        try:
            recipe = build_recipe(tables.config)
            check_facts(tables.config, recipe)
        except ConfigurationError as problem:
            if tables.name is None:
                raise
            raise ConfigurationError(f"phase {tables.name!r}: {problem}") from problem
        optimizer, factor = tables.config.optimizer, config.student.what_learns.learning_rate_factor
        optimizer = replace(optimizer, learning_rate=optimizer.learning_rate * factor)
        phases.append(Phase(recipe, optimizer, tables.first_step, tables.name))
    check_reference(config.reference, [phase.recipe for phase in phases])
    return phases
