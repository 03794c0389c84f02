"""From a table such as `[policy] name = "trust_region"` to the part that it names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, fields
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from tutelage.advantages import ADVANTAGES, Advantage
from tutelage.config.load import unknown_key, with_key
from tutelage.config.schema import RunConfig
from tutelage.errors import ConfigurationError
from tutelage.losses import LOSSES, Loss
from tutelage.schedules import schedule_from
from tutelage.tasks import excerpt

__all__ = ["losses_from", "named_in_refusals", "part_from"]

Part = TypeVar("Part")

KINDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "nothing"}


def part_from(table: Mapping[str, Any], members: Mapping[str, type[Part]], key: str) -> Part:
    """The member of an axis that a table describes; its other keys are the member's fields.

    Args:
      table: `name`, and the member's fields. A field may be a schedule, written as a table with `schedule`, an
        advantage, written as a table or by its name alone, or a list of these.
      members: the axis' own table of members.
      key: of the table in the run file, for messages.
    Raises:
      ConfigurationError: no such member or field (with the nearest known), or a value that the member refuses.
    """
    values = dict(table)
    name = values.pop("name", None)
    if not isinstance(name, str) or name not in members:
        raise ConfigurationError(f"{key}.name is {name!r}; expected one of {', '.join(sorted(members))}.")
    member = members[name]
    known = _settable(member)
    kinds = get_type_hints(member)
    for field_name, value in values.items():
        if field_name not in known:
            raise _unknown_field(field_name, name, members, key)
        values[field_name] = _value_from(value, kinds[field_name], f"{key}.{field_name}")
    missing = [f.name for f in fields(member) if f.init and f.name not in values and _is_required(f)]  # type: ignore[arg-type]
    if missing:
        raise ConfigurationError(f"{key}.{missing[0]} is missing; {name!r} needs it. Add it to [{key}].")
    return member(**values)


@contextmanager
def named_in_refusals(key: str, *names: str) -> Iterator[None]:
    """Refusals of a member with the key of its table; see `with_key`."""
    try:
        yield
    except ConfigurationError as problem:
        raise ConfigurationError(with_key(str(problem), key, *names)) from problem


def losses_from(config: RunConfig) -> tuple[Loss, ...]:
    """The terms of the objective: those of [[loss]], or the one that [divergence] names.

    Raises:
      ConfigurationError: as of `part_from`; a value is named by the key that the run file has.
    """
    tables = {f"loss[{place}]": table for place, table in enumerate(config.loss)}
    terms = []
    for key, table in (tables or {"divergence": config.divergence or {}}).items():
        with named_in_refusals(key, "divergence", "loss"):
            terms.append(part_from(table, LOSSES, key))
    return tuple(terms)


def _value_from(value: Any, hint: Any, key: str) -> Any:
    """A field's value from what stands in the run file, by the field's annotation."""
    if get_origin(hint) is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigurationError(f"{key} is {excerpt(value)}; expected a list. Write {key} = [...].")
        kind, _ = get_args(hint)
        return tuple(_value_from(each, kind, f"{key}[{place}]") for place, each in enumerate(value))
    if hint is Advantage:
        return _advantage_from(value, key)
    if isinstance(value, Mapping):
        value = schedule_from(value, key)
    _check_kind(key, value, hint)
    alternatives = _alternatives(hint)
    if type(value) is int and float in alternatives and int not in alternatives:
        return float(value)  # products of whole numbers can be beyond what a tensor takes
    return value


def _advantage_from(value: Any, key: str) -> Advantage:
    """The advantage that a table describes; a name alone is short for a table."""
    table = {"name": value} if isinstance(value, str) else value
    if not isinstance(table, Mapping):
        raise ConfigurationError(
            f"{key} is {excerpt(value)}; expected a table with a name, or the name alone, of one of "
            f"{', '.join(ADVANTAGES)}. Correct it in the run file or with --set."
        )
    with named_in_refusals(key, "advantage"):
        return part_from(table, ADVANTAGES, key)


def _settable(member: type[Any]) -> list[str]:
    return [field.name for field in fields(member) if field.init]


def _unknown_field(field: str, name: str, members: Mapping[str, type[Any]], key: str) -> ConfigurationError:
    """The error for a field that the member does not have, but perhaps another one has."""
    others = [other for other, member in members.items() if field in _settable(member)]
    if not others:
        return unknown_key(f"{key}.{field}", _settable(members[name]))
    return ConfigurationError(
        f"{key}.{field} is set, but {key}.name is {name!r}, which has no {field}; it belongs to {', '.join(others)}. "
        f"Set {key}.name to that, or drop the field: --set {key}={name} does so."
    )


def _check_kind(key: str, value: Any, hint: Any) -> None:
    """A field annotated with plain classes, such as `int` or `float | Schedule`, gets one of these."""
    kinds = _alternatives(hint)
    if not all(isinstance(kind, type) for kind in kinds):
        return
    allowed = (*kinds, int) if float in kinds else kinds
    if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in kinds):
        names = " or ".join(KINDS.get(kind, f"a {kind.__name__.lower()}") for kind in kinds)
        raise ConfigurationError(f"{key} is {value!r}; expected {names}. Correct it in the run file or with --set.")


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _is_required(field: Any) -> bool:
    return field.default is MISSING and field.default_factory is MISSING
