"""The run-file reference: every key with its type, bounds and default from the schema, every member with its fields.

What a key means is written once, in docs/usage/run-file.md, whose tables are read here; what a member does stands in
its docstring.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING
from typing import Any, NamedTuple

from tutelage.advantages import ADVANTAGES
from tutelage.config import RunConfig
from tutelage.config.source import toml_text
from tutelage.losses import DISTRIBUTION_LOSSES, PAIR_LOSSES, TOKEN_LOSSES
from tutelage.models import TRAINABLES
from tutelage.policies import POLICIES
from tutelage.rewards import COMBINATIONS, REWARDS
from tutelage.schedules import SCHEDULES
from tutelage.targets import TARGETS
from tutelage.weighting import WEIGHTINGS
from website.docstrings import member_as_markdown
from website.repository import ROOT

__all__ = ["AXES", "Key", "run_file_keys", "run_file_page", "table_rows"]

# Heading -> key that names a member, members by name.
AXES: dict[str, tuple[str, Mapping[str, type[Any]]]] = {
    "Policies": ("policy", POLICIES),
    "Targets": ("target", TARGETS),
    "Losses on distributions": ("loss", DISTRIBUTION_LOSSES),
    "Losses on sampled tokens": ("loss", TOKEN_LOSSES),
    "Losses on pairs of answers": ("loss", PAIR_LOSSES),
    "Advantages": ("advantage", ADVANTAGES),
    "Weightings": ("weighting", WEIGHTINGS),
    "Rewards": ("reward", REWARDS),
    "Combinations of rewards": ("reward_combination", COMBINATIONS),
    "Schedules": ("schedule", SCHEDULES),
    "Trainables": ("student.trainable", TRAINABLES),
}
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
TYPES = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false", "object": "table"}
INTRODUCTION = """# The run file: every key

Made from the schema when the site was built, so types, bounds and defaults are those of the code. "—" is a key without
a default, which may be left out. In a dotted key, `NAME` stands for a name of your own, `[]` for each table of a list.
Explanations and examples: [the run file, key by key](run-file.md).
"""


class Key(NamedTuple):
    """One row of the reference."""

    name: str
    kind: str
    default: str


def run_file_page() -> str:
    """The page in Markdown."""
    meanings = table_rows((ROOT / "docs/usage/run-file.md").read_text())
    sections: dict[str, list[Key]] = {}
    for key in run_file_keys():
        table, dot, _ = key.name.partition(".")
        section = f"[{table.replace('[]', '')}]" if dot else "The run"
        section = f"[{section}]" if "[]" in table else section
        sections.setdefault(section, []).append(key)
    parts = [INTRODUCTION]
    for section, keys in sections.items():
        parts.append(f"## {section}\n")
        parts.append("| key | type | default | meaning |\n|---|---|---|---|")
        for key in keys:
            unit, meaning = _explained(key.name, meanings)
            kind = f"{key.kind} ({unit})" if unit else key.kind
            parts.append(f"| `{key.name}` | {kind} | {key.default} | {meaning} |")
        parts.append("")
    for heading, (axis, members) in AXES.items():
        parts.append(f"## {heading}\n")
        names = {member: name for name, member in reversed(members.items())}  # the first one; others are older ones
        parts += [_member(axis, name, member) for name, member in members.items() if names[member] == name]
    return "\n".join(parts)


def run_file_keys() -> list[Key]:
    """Every key that the schema knows, in its order."""
    schema = RunConfig.model_json_schema()
    return list(_keys(schema, schema["$defs"], ""))


def table_rows(text: str) -> dict[str, list[str]]:
    """Every name in backticks in the first cell of a table row -> the row's other cells; the first row counts."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith("|"):
            first, *others = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]
            found = dict.fromkeys(re.findall(r"`([^`]+)`", first), others) | found
    return found


def _keys(schema: Mapping[str, Any], tables: Mapping[str, Any], prefix: str) -> Iterator[Key]:
    for name, item in schema["properties"].items():
        key = prefix + name
        inner, suffix = _table_of(item, tables)
        if inner is None or suffix or ("default" in item and item["default"] is None):
            default = item.get("default", MISSING)
            yield Key(key, _kind(item, tables), _shown(default, required=name in schema.get("required", ())))
        if inner is not None:
            yield from _keys(inner, tables, f"{key}{suffix}.")


def _table_of(item: Mapping[str, Any], tables: Mapping[str, Any]) -> tuple[Mapping[str, Any] | None, str]:
    """The schema of the table that stands at a key, and what its name is followed by in a list or by name."""
    for each in (item, *item.get("anyOf", ())):
        for place, suffix in ((each, ""), (each.get("items", {}), "[]"), (each.get("additionalProperties"), ".NAME")):
            if isinstance(place, Mapping) and "$ref" in place:
                return tables[place["$ref"].rpartition("/")[2]], suffix
    return None, ""


def _kind(item: Mapping[str, Any], tables: Mapping[str, Any]) -> str:
    """A type in words, with its bounds."""
    if "anyOf" in item:
        return " or ".join(dict.fromkeys(_kind(each, tables) for each in item["anyOf"] if each.get("type") != "null"))
    if "enum" in item or "const" in item:
        return ", ".join(f'`"{value}"`' for value in item.get("enum", [item.get("const")]))
    if item.get("type") == "array":
        return f"list of {_kind(item.get('items', {}), tables)}s" if "items" in item else "list"
    bounds = [f"{sign} {item[name]:g}" for name, sign in BOUNDS.items() if name in item and item[name] < 2**62]
    return " ".join([TYPES.get(item.get("type", "object"), "table"), ", ".join(bounds)]).strip()


def _shown(default: Any, *, required: bool) -> str:
    if required:
        return "required"
    return "—" if default is None or default is MISSING else f"`{toml_text(default)}`"


def _explained(key: str, meanings: Mapping[str, list[str]]) -> tuple[str, str]:
    """Unit and meaning as docs/usage/run-file.md has them; of a key that several tables share, of one of these."""
    plain = re.sub(r"\[\]|\.NAME", "", key)
    for name in (plain, re.sub(r"^teacher\.(experts|routes)\.", "student.", plain)):
        if name in meanings:
            _, unit, meaning = meanings[name]
            return unit, meaning.replace("](#", "](run-file.md#")
    return "", ""


def _member(axis: str, name: str, member: type[Any]) -> str:
    return f"### {axis}: {name} {{ #{axis}-{name} }}\n\n{member_as_markdown(member)}"
