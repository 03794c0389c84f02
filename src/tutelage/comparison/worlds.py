"""How is a recipe moved to another world? Its method stays; models, prompts, problems and sizes are replaced.

A world is a few tables of a run file, such as those of the packaged tiny pair or of a file of the user's. Horizons keep
their share of the run: a budget that falls over 50 of 400 steps falls over 8 of 60.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage.config import RunConfig, read_run_file, resolve_config
from tutelage.errors import ConfigurationError

__all__ = ["LEARNING", "OWN_TEACHER", "PRIVILEGE", "World", "in_world", "read_world", "scaled_horizons"]

# Tables that say which models, prompts and problems there are: a world's own take the place of all of the recipe's, but
# for what is the method.
REPLACED = ("student", "teacher", "teachers", "reference", "data", "evaluation")
# What in these tables belongs to the method: what learns, and a student that teaches itself with what it then reads.
LEARNING = ("adapter", "trainable")  # in [student]
OWN_TEACHER = ("weights", "refresh_every", "share")  # in [teacher]
PRIVILEGE = ("privileged_column", "privileged_template", "teacher_prompt_column")  # in [data]
NEEDED = ("student", "teacher", "data")  # of these tables
# Tables of sizes and numbers: a world's keys go over the recipe's, the others stay.
MERGED = ("rollout", "optimizer", "checkpoint", "runtime", "logging")


@dataclass(frozen=True)
class World:
    """Where methods are compared.

    Fields:
      name: as the user gave it.
      tables: `student`, `teacher`, `data` and any of the other tables above, and `steps`, as a run file has them.
      files: path -> content of what the tables point to and does not exist yet.
    """

    name: str
    tables: Mapping[str, Any]
    files: Mapping[Path, str]


def read_world(path: Path) -> World:
    """A world from a TOML file with the tables of a run file, but for those of the method."""
    tables = {key: value for key, value in read_run_file(path).items() if key != "name"}
    return _checked(World(str(path), tables, {}))


def in_world(table: Mapping[str, Any], world: World) -> tuple[dict[str, Any], list[str]]:
    """A run file's table moved to a world, and what that changed, key by key, for the user."""
    tables = _checked(world).tables
    _check_shape(table)
    moved, changes = deepcopy(dict(table)), []
    if "steps" in tables:
        before = moved.get("steps", RunConfig.model_fields["steps"].default)
        moved, scaled = scaled_horizons(moved, before, tables["steps"])
        moved["steps"] = tables["steps"]
        changes += [f"steps {before} -> {tables['steps']}", *scaled]
    own = moved.get("student")
    learning = {key: own[key] for key in LEARNING if key in own} if isinstance(own, Mapping) else {}
    taught = moved["teacher"] if _teaches_itself(moved) else None
    asked = moved.get("data")
    privilege = {key: asked[key] for key in PRIVILEGE if key in asked} if isinstance(asked, Mapping) else {}
    for key in REPLACED:
        if key in moved and key not in tables:
            changes.append(f"{key} left out")
        moved.pop(key, None)
        if key in tables:
            moved[key] = deepcopy(tables[key])
            changes.append(key)
    if learning:  # what learns is part of the method; its rate is a multiple of the world's
        student = moved["student"]
        moved["student"] = {**({"path": student} if isinstance(student, str) else student), **learning}
    if taught is not None:  # whose weights and what they read is the method
        data = moved["data"]
        moved["teacher"] = deepcopy(taught)
        moved["data"] = {**({"path": data} if isinstance(data, str) else data), **privilege}
        changes.remove("teacher")
    for key in MERGED:
        for name, value in tables.get(key, {}).items():
            before = moved.setdefault(key, {}).get(name)
            moved[key][name] = deepcopy(value)
            if before != value:
                changes.append(f"{key}.{name} {'' if before is None else f'{before} '}-> {value}")
    return moved, changes


def scaled_horizons(table: Mapping[str, Any], before: int, now: int) -> tuple[dict[str, Any], list[str]]:
    """The table with every horizon in proportion: k' = k · now / before, rounded, at least 1, and still increasing.

    Horizons are `steps` and `points` of schedules, wherever they stand, and `steps` of phases, which are moved by their
    ends, so that phases that filled the run still do.
    """
    changes: list[str] = []

    def walk(value: Any, key: str) -> Any:
        if isinstance(value, list):
            return [walk(item, f"{key}[{place}]") for place, item in enumerate(value)]
        if not isinstance(value, Mapping):
            return value
        copy = {name: walk(item, f"{key}.{name}".lstrip(".")) for name, item in value.items()}
        if "schedule" in copy and isinstance(copy.get("steps"), int):
            copy["steps"] = max(1, round(copy["steps"] * now / before))
            note(f"{key}.steps", value["steps"], copy["steps"])
        if "schedule" in copy and _are_points(copy.get("points")):  # else the schedule refuses them later
            copy["points"] = _moved_points(copy["points"], now / before)
            note(f"{key}.points", value["points"], copy["points"])
        if isinstance(copy.get("phase"), list):
            copy["phase"] = _moved_phases(copy["phase"], now / before)
            for place, (old, new) in enumerate(zip(value["phase"], copy["phase"], strict=True), start=1):
                if "steps" in old:  # named as `--set` names it
                    note(f"phase.{old.get('name', place)}.steps", old["steps"], new["steps"])
        return copy

    def note(key: str, old: Any, new: Any) -> None:
        if old != new:
            changes.append(f"{key} {old} -> {new}")

    return walk(table, ""), changes


def _are_points(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(point, list) and len(point) == 2 and isinstance(point[0], int) for point in value
    )


def _moved_points(points: list[Any], ratio: float) -> list[Any]:
    moved: list[Any] = []
    for step, value in points:
        place = round(step * ratio)
        moved.append([max(place, moved[-1][0] + 1) if moved else place, value])
    return moved


def _moved_phases(phases: list[dict[str, Any]], ratio: float) -> list[dict[str, Any]]:
    moved, end, moved_end = [], 0, 0
    for phase in phases:
        if "steps" not in phase:
            moved.append(phase)
            continue
        end += phase["steps"]
        steps = max(1, round(end * ratio) - moved_end)
        moved_end += steps
        moved.append({**phase, "steps": steps})
    return moved


def _teaches_itself(table: Mapping[str, Any]) -> bool:
    """The teacher is the student, so the world's is another method's."""
    teacher = table.get("teacher")
    return isinstance(teacher, Mapping) and "weights" in teacher


def _check_shape(table: Mapping[str, Any]) -> None:
    """Refuse a table whose values are not of the kinds that they are changed as; a recipe may leave out its models."""
    named = {key: table.get(key, {}) for key in NEEDED if not (key == "teacher" and _teaches_itself(table))}
    filled = {key: {"path": "of the world", **own} if isinstance(own, Mapping) else own for key, own in named.items()}
    resolve_config(deepcopy({**table, **filled}))


def _checked(world: World) -> World:
    wrong = [key for key in world.tables if key not in (*REPLACED, *MERGED, "steps")]
    if wrong:
        raise ConfigurationError(
            f"the world {world.name} sets {', '.join(wrong)}; a world has models, prompts, problems and sizes, and the "
            "recipes have the method. Leave that to the recipes."
        )
    missing = [key for key in NEEDED if key not in world.tables]
    if missing:
        raise ConfigurationError(
            f"the world {world.name} has no {missing[0]}; it must say which models and prompts there are. "
            f"Add [{missing[0]}] with a path."
        )
    try:
        _check_shape(world.tables)
    except ConfigurationError as problem:
        raise ConfigurationError(f"the world {world.name}: {problem}") from problem
    return world
