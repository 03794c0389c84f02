"""Docstrings as Markdown: formulas keep their lines, and the fields of a dataclass become a table."""

from __future__ import annotations

import re
from dataclasses import MISSING, fields, is_dataclass
from inspect import getdoc
from typing import Any

from tutelage.config.source import toml_text

__all__ = ["as_markdown", "member_as_markdown", "split_fields"]

SECTION = re.compile(r"^(Args|Attributes|Fields|Returns|Raises|Yields):$")
FORMULA = re.compile(r" = |∝|\|\||Σ|^[-(]|^1\[")


def as_markdown(docstring: str) -> str:
    """The text with its indented lines as blocks of code, but for those of sections such as Args."""
    written: list[str] = []
    in_section = in_formula = False
    for line in docstring.splitlines():
        if line and not line.startswith(" "):
            in_section = SECTION.match(line) is not None
        if line and not in_section and line.startswith("  ") != in_formula:
            in_formula = not in_formula
            written += ["```text"] if in_formula else ["```", ""]
        written.append(line if in_formula else plain(line))
    text = "\n".join([*written, "```"] if in_formula else written)
    return re.sub(r"\n+```\n", "\n```\n", text)


def plain(text: str) -> str:
    """Text whose tags and asterisks are no markup, but where it is set as code."""
    marks = {"<": "&lt;", "*": r"\*"}
    return re.sub(r"`[^`]*`|<(?=[\w/])|\*", lambda found: marks.get(found[0], found[0]), text)


def split_fields(docstring: str) -> tuple[str, dict[str, str]]:
    """The text before "Fields:", and what it says of each field."""
    body, _, listed = docstring.partition("\nFields:\n")
    listed, _, rest = listed.partition("\n\n")
    meanings: dict[str, str] = {}
    names: list[str] = []
    for line in listed.splitlines():
        if found := re.match(r"^  (\w[\w, ]*?)(?:, \.\.\.)?: (.*)", line):
            names = [name.strip() for name in found[1].split(",")]
            meanings |= dict.fromkeys(names, found[2])
        else:
            meanings |= {name: f"{meanings[name]} {line.strip()}" for name in names}
    return f"{body.strip()}\n\n{rest.strip()}".strip(), meanings


def member_as_markdown(member: type[Any]) -> str:
    """What a member of an axis does, and a table of its fields with type, default and meaning."""
    body, meanings = split_fields(getdoc(member) or "")
    first, _, rest = body.partition("\n\n")
    lines = [f"```text\n{first}\n```" if FORMULA.search(first) else plain(first), "", as_markdown(rest), ""]
    settable = [field for field in fields(member) if field.init]
    if settable:
        lines.append("| field | type | default | meaning |\n|---|---|---|---|")
    for field in settable:
        kind = str(field.type).replace("|", "\\|")
        made = field.default_factory() if field.default_factory is not MISSING else field.default
        made = type(made).__name__ if is_dataclass(made) else made
        default = "required" if made is MISSING else "—" if made is None else f"`{toml_text(made)}`"
        own = meanings.get(field.name, "see")
        meaning = plain(_inherited(member, field.name) if own.startswith("see") else own).replace("|", "\\|")
        lines.append(f"| `{field.name}` | {kind} | {default} | {meaning} |")
    return "\n".join([*lines, ""])


def _inherited(member: type[Any], name: str) -> str:
    """What the class says of a field that a member has it from."""
    for base in member.__mro__[1:]:
        if name in (meanings := split_fields(getdoc(base) or "")[1]):
            return meanings[name]
    return ""
