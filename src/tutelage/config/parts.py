"""From a table such as `[policy] name = "trust_region"` to the part that it names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from tutelage.config.load import unknown_key
from tutelage.errors import ConfigurationError
from tutelage.schedules import schedule_from

__all__ = ["part_from"]

Part = TypeVar("Part")


def part_from(table: Mapping[str, Any], members: Mapping[str, type[Part]], key: str) -> Part:
    """The member of an axis that a table describes; its other keys are the member's fields.

    Args:
      table: `name`, and the member's fields; a field may be a schedule, written as a table with `schedule`.
      members: the axis' own table of members.
      key: of the table in the run file, for messages.
    Raises:
      ConfigurationError: no such member or field (with the nearest known), or a value that the member refuses.
    """
    values = dict(table)
    name = values.pop("name", None)
    if name not in members:
        raise ConfigurationError(f"{key}.name is {name!r}; expected one of {', '.join(sorted(members))}.")
    member = members[name]
    known = [field.name for field in fields(member) if field.init]  # type: ignore[arg-type]
    for field_name, value in values.items():
        if field_name not in known:
            raise unknown_key(f"{key}.{field_name}", known)
        if isinstance(value, Mapping):
            values[field_name] = schedule_from(value, f"{key}.{field_name}")
    missing = [f.name for f in fields(member) if f.init and f.name not in values and _is_required(f)]  # type: ignore[arg-type]
    if missing:
        raise ConfigurationError(f"{key}.{missing[0]} is missing; {name!r} needs it. Add it to [{key}].")
    return member(**values)


def _is_required(field: Any) -> bool:
    from dataclasses import MISSING

    return field.default is MISSING and field.default_factory is MISSING
