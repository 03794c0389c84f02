"""From a TOML file and `--set` overrides to a checked RunConfig, with one clear message for anything that is wrong."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, get_args

import tomli_w
from pydantic import BaseModel, ValidationError

from tutelage.config.model_sections import TeacherConfig, settings_of_trainable
from tutelage.config.places import find_again
from tutelage.config.schema import AXES, EvaluationSetConfig, PhaseConfig, RunConfig, settings_of_update
from tutelage.config.section import THIS
from tutelage.config.source import check_values, override_texts, plain_value, read_table, value_of
from tutelage.errors import ConfigurationError
from tutelage.paths import check_file_name, expanded_path
from tutelage.report.sources import flattened
from tutelage.tasks import excerpt

__all__ = ["load_config", "read_run_file", "resolve_config", "settings_of", "to_toml", "unknown_key", "with_key"]

# Tables that may be written as one string, and the field that the string then means.
SHORTHANDS = {"student": "path", "teacher": "path", "data": "path", "policy": "name", "target": "name"}
SHORTHANDS |= {"divergence": "name", "weighting": "name", "reference": "path", "reward_combination": "name"}
# Tables whose name says which fields they have.
NAMED = {"optimizer": settings_of_update, "student.trainable": settings_of_trainable}
MAX_SHOWN = 200  # letters of a wrong value in a message


def load_config(
    run_file: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | Sequence[str] = ()
) -> RunConfig:
    """Read a run file and apply overrides: `key.path=value` texts, or values by their keys.

    Raises:
      ConfigurationError: no such file, not TOML, an unknown key (with the nearest known one), a bad value.
    """
    return resolve_config(read_run_file(run_file), override_texts(overrides))


def read_run_file(run_file: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """The table that a run file holds, unchecked but for its name, which is the file's stem if it has none.

    Args:
      run_file: its path; or such a table, made in Python, which is copied.
    """
    if isinstance(run_file, Mapping):
        table: dict[str, Any] = plain_value(run_file, "")
        name = table.setdefault("name", RunConfig.model_fields["name"].default)
    else:
        file = Path(expanded_path(str(run_file), "the run file"))
        table = read_table(file)
        name = table.setdefault("name", file.stem)
        find_again(table, file)
    if isinstance(name, str):  # else the schema says what it must be; comparisons make folders of it before that
        check_file_name(name, "name", "first-run")
    return table


def resolve_config(table: dict[str, Any], overrides: Sequence[str] = ()) -> RunConfig:
    """Check a table as read from TOML; see `load_config`."""
    table = {key: _expanded(key, value) for key, value in table.items()}
    for override in overrides:
        _apply(table, override)
    check_values(table, "the run file or with --set")
    for axis in (*AXES, "reward_combination"):
        if isinstance(table.get(axis), dict):  # without a name, its fields are those of the default member
            table[axis] = {"name": RunConfig.model_fields[axis].default["name"], **table[axis]}
    if table.get("loss"):
        table.setdefault("divergence", None)
    if isinstance(table.get("reward"), str | dict | list):
        table["reward"] = _tables(table["reward"], "name")
    _expand_evaluation_sets(table)
    _expand_phases(table)
    _check_known(table, RunConfig, "")
    try:
        return RunConfig(**table)
    except ValidationError as problem:
        raise ConfigurationError(_explained(problem)) from problem


def to_toml(config: RunConfig) -> str:
    """The resolved configuration as TOML; reading it back gives the same run."""
    left_out: dict[str, Any] = {} if config.has_teacher else {"teacher": True}
    if config.teacher.is_student:  # which says it all; the rest is the student's
        kept = ("weights", "refresh_every", "share")
        left_out["teacher"] = {name for name in TeacherConfig.model_fields if name not in kept}
    return tomli_w.dumps(_without_none(config.model_dump(mode="python", exclude=left_out)))


def settings_of(config: RunConfig) -> dict[str, Any]:
    """Every value of the resolved configuration by its dotted key, as its TOML has it."""
    return flattened(tomllib.loads(to_toml(config)))


def unknown_key(key: str, known: Iterable[str]) -> ConfigurationError:
    """The error for a key that does not exist, naming the nearest one that does."""
    known = sorted(known)
    name = key.rsplit(".", 1)[-1]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    prefix = key[: -len(name)]
    hint = f"Did you mean {prefix}{near[0]}?" if near else f"Known here: {', '.join(known) or 'none'}."
    return ConfigurationError(f"unknown configuration key {key!r}. {hint}")


def with_key(message: str, key: str, *names: str) -> str:
    """A member's message with the key that its table has in the run file; quoted values and paths stay.

    Args:
      names: what the member calls its table, wherever that stands.
    """
    return re.sub(rf"(?<![\w.'\"/\\])(?:{'|'.join(map(re.escape, names))})(?=\.)", lambda _: key, message)


def _expanded(key: str, value: Any) -> Any:
    if key == "phase" and isinstance(value, list):
        return [{k: _expanded(k, v) for k, v in item.items()} if isinstance(item, dict) else item for item in value]
    return {SHORTHANDS[key]: value} if key in SHORTHANDS and isinstance(value, str) else value


def _tables(value: Any, field: str) -> list[Any]:
    """A list of tables; one may stand alone, and a string is short for one with this field."""
    items = value if isinstance(value, list) else [value]
    return [{field: item} if isinstance(item, str) else item for item in items]


def _expand_evaluation_sets(table: dict[str, Any]) -> None:
    evaluation = table.get("evaluation")
    if not isinstance(evaluation, dict) or "sets" not in evaluation:
        return
    evaluation["sets"] = _tables(evaluation["sets"], "path")
    for place, item in enumerate(evaluation["sets"]):
        if isinstance(item, dict):
            _check_known(item, EvaluationSetConfig, f"evaluation.sets[{place}].")


def _expand_phases(table: dict[str, Any]) -> None:
    """An axis of a phase in short becomes a table; one without a name changes fields of the run's own member."""
    table["phase"] = _expanded("phase", table.get("phase", []))
    for place, phase in enumerate(table["phase"] if isinstance(table["phase"], list) else [], start=1):
        if not isinstance(phase, dict):
            continue
        _check_known(phase, PhaseConfig, f"phase.{phase.get('name', place)}.")
        for axis in AXES:
            own = table.get(axis, RunConfig.model_fields[axis].default)
            if isinstance(phase.get(axis), dict) and isinstance(own, dict) and "name" not in phase[axis]:
                phase[axis] = {**own, **phase[axis]}


def _apply(table: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise ConfigurationError(f"--set got {override!r}; expected key.path=value, such as policy.kl_radius=0.1.")
    *parents, last = key.strip().split(".")
    place = table
    if parents[:1] == ["phase"] and len(parents) > 1 and isinstance(table.get("phase"), list):
        place, parents = _phase_called(parents[1], table["phase"], override), parents[2:]
    for depth, parent in enumerate(parents):
        place = place.setdefault(parent, {})
        if not isinstance(place, dict):
            raise ConfigurationError(f"--set {override}: {'.'.join(parents[: depth + 1])} is a value, not a table.")
    value = value_of(text)
    if isinstance(value, int | float) and not isinstance(value, bool) and _is_text(key.strip().split(".")):
        value = text.strip()  # a folder may well be called 2026
    if not parents and last in SHORTHANDS and not isinstance(value, dict):
        value = {SHORTHANDS[last]: value if isinstance(value, str) else text}
        if last in ("student", "teacher", "reference", "data") and isinstance(place.get(last), dict):
            # `--set student=DIR` names another model and keeps the recipe's other fields for it.
            value = {**place[last], **value}
    place[last] = value


def _is_text(keys: Sequence[str]) -> bool:
    """Whether the setting with this key can be nothing but text."""
    kind: Any = RunConfig
    for key in keys:
        kind = _fields_of(kind).get(key)
    return kind is str or kind == str | None


def _phase_called(name: str, phases: Sequence[Any], override: str) -> dict[str, Any]:
    """The table of one phase, by its name or its place from 1."""
    tables = {str(place): phase for place, phase in enumerate(phases, start=1) if isinstance(phase, dict)}
    tables |= {str(phase["name"]): phase for phase in tables.values() if "name" in phase}
    if name not in tables:
        raise ConfigurationError(f"--set {override}: there is no phase {name!r}; expected one of {', '.join(tables)}.")
    return tables[name]


def _check_known(table: Mapping[str, Any], schema: Any, prefix: str) -> None:
    known = _fields_of(schema)
    for key, value in table.items():
        if key not in known:
            raise unknown_key(f"{prefix}{key}", known)
        if isinstance(value, bool) and not re.search("bool|Any", str(known[key])):  # pydantic would read it as 1 or 0
            raise ConfigurationError(
                f"{prefix}{key} is {str(value).lower()}; it is not a yes-or-no setting. Give a value."
            )
        if isinstance(value, dict):
            kind = NAMED[prefix + key](value) if prefix + key in NAMED else known[key]
            if _fields_of(kind):
                _check_known({name: inner for name, inner in value.items() if name != "name"}, kind, f"{prefix}{key}.")


def _fields_of(schema: Any) -> dict[str, Any]:
    if isinstance(schema, UnionType):  # a table that may be left out
        schema = get_args(schema)[0]
    if isinstance(schema, type) and issubclass(schema, BaseModel):
        return {name: field.annotation for name, field in schema.model_fields.items()}
    if is_dataclass(schema):
        return {field.name: field.type for field in fields(schema)}
    return {}


def _explained(problem: ValidationError) -> str:
    """The first thing that is wrong, in one line."""
    error = problem.errors()[0]
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"]).removeprefix(".")
    key = re.sub(r"^phase\[(\d+)\]", lambda place: f"phase.{int(place[1]) + 1}", key)  # as --set takes it
    if error["type"] == "missing":
        return f"{key} is missing; a run needs it. Add it to the run file, or give --set {key}=..."
    if error["type"] == "value_error":
        message = str(error["ctx"]["error"])
        if key == "student.trainable":
            message = with_key(message, key, "student.adapter")
        return key + message.removeprefix(THIS) if message.startswith(THIS) else message
    found = excerpt(error["input"], MAX_SHOWN)
    if error["type"] in ("dict_type", "model_type", "dataclass_type"):
        return f"{key} is {found}; it should be a table. Write its fields, such as --set {key}.FIELD=..."
    message = error["msg"].replace("Input should", "it should")
    quotes = ", in quotes" if error["type"] == "string_type" else ""
    return f"{key} is {found}; {message}{quotes}. Correct it in the run file or with --set {key}=..."


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_without_none(item) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        return _without_none({field.name: getattr(value, field.name) for field in fields(value)})
    return value
