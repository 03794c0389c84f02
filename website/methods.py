"""What a page of docs/methods gets from elsewhere: the members that its recipes use, the recipes, what was measured.

A page names its recipes in a line that begins with "Recipe" and links to the files. Formulas come from the docstrings
of the members, differences from the run files, measurements from the tables of the results; none stands twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any

from tutelage.config import build_phases, load_config, read_run_file
from tutelage.config.source import toml_text
from tutelage.models import AdapterSettings
from tutelage.report.sources import flattened
from tutelage.rewards import COMBINATIONS, REWARDS
from website.docstrings import member_as_markdown
from website.repository import ROOT
from website.run_file import AXES

__all__ = ["METHODS", "anchor", "evidence", "members_of", "method_parts", "page_of_recipe", "recipes_of"]

METHODS = ROOT / "docs" / "methods"
RECIPES = ROOT / "recipes"
BASELINE = "opd"
# What says nothing about a method.
OF_THE_FILE = ("name", "output")


def recipes_of(text: str) -> list[str]:
    """The recipes that the text of a page is about."""
    (line,) = re.findall(r"^Recipes?: .*$", text, flags=re.MULTILINE)
    return re.findall(r"recipes/(\w+)\.toml", line)


@cache
def page_of_recipe() -> dict[str, str]:
    """Recipe -> the page of docs/methods that is about it."""
    pages = [path for path in sorted(METHODS.glob("*.md")) if path.name != "README.md"]
    return {recipe: path.name for path in pages for recipe in recipes_of(path.read_text())}


def anchor(heading: str) -> str:
    """The name under which a heading is linked to."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def method_parts(text: str) -> str:
    """What is put after the text of a page."""
    recipes = recipes_of(text)
    return "\n".join([*_formulas(recipes), *_measurements(recipes), *_files(recipes)])


# --- formulas --------------------------------------------------------------------------------------------------------


def members_of(recipe: str) -> list[type[Any]]:
    """Every member of an axis that a recipe uses, in the order of the axes."""
    config = load_config(RECIPES / f"{recipe}.toml", ["data=prompts.jsonl"])
    parts = [part for phase in build_phases(config) for part in _parts(phase.recipe)]
    kinds = [type(part) for part in parts] + [REWARDS[table["name"]] for table in config.reward]
    kinds += [COMBINATIONS[config.reward_combination["name"]]] if len(config.reward) > 1 else []
    kinds += [AdapterSettings] if config.student.adapter is not None else []
    known = {member for axis, members in AXES.values() for member in members.values() if axis != "schedule"}
    return [kind for kind in dict.fromkeys(kinds) if kind in known]


def _parts(part: Any) -> Iterator[Any]:
    """A part and all that it is made of."""
    if isinstance(part, tuple):
        for each in part:
            yield from _parts(each)
    elif is_dataclass(part):
        yield part
        for field in fields(part):
            yield from _parts(getattr(part, field.name))


def _formulas(recipes: Sequence[str]) -> Iterator[str]:
    kinds = dict.fromkeys(kind for recipe in recipes for kind in members_of(recipe))
    usual = () if BASELINE in recipes else members_of(BASELINE)
    names = {member: f"{axis}: {name}" for axis, members in AXES.values() for name, member in reversed(members.items())}
    shown = [kind for kind in kinds if kind not in usual]
    if shown:
        yield "\n## Formulas and settings\n\np is the student, q the teacher, a the sampled token.\n"
    for kind in shown:
        yield f"### {names[kind]}\n\n{member_as_markdown(kind)}"


# --- measurements ----------------------------------------------------------------------------------------------------


def evidence(recipes: Sequence[str], results: str) -> list[tuple[str, list[str]]]:
    """(heading, rows of Markdown) of every table of the results that has a row of one of the recipes.

    A row belongs to a recipe if its first cell begins with that name, up to a comma. With it come the table's head and
    its first row, what it is to be compared with.
    """
    found = []
    for heading, lines in _tables(results):
        head, rows = lines[:2], lines[2:]
        own = [row for row in rows[1:] if _recipe_of(row) in recipes]
        if own or _recipe_of(rows[0]) in recipes:
            found.append((heading, [*head, rows[0], *own]))
    return found


def _tables(text: str) -> Iterator[tuple[str, list[str]]]:
    """(heading above it, lines) of every table."""
    heading, lines = "", list[str]()
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            lines.append(line)
            continue
        if len(lines) > 2:
            yield heading, lines
        lines = []
        heading = line.lstrip("# ") if line.startswith("#") else heading


def _recipe_of(row: str) -> str:
    name = re.split(r"<br>|,", row.strip("| ").partition("|")[0])[0]
    return re.sub(r"[-\s]+", "_", name.strip(" `").lower())


def _measurements(recipes: Sequence[str]) -> Iterator[str]:
    docs = ROOT / "docs"
    pages = [docs / "results.md", *sorted((docs / "results").glob("*.md"))]
    found = [(page, *each) for page in pages for each in evidence(recipes, page.read_text())]
    yield "\n## What was measured here\n"
    if not found:
        yield "No comparison with this recipe is reported in the [results](../results.md)."
        return
    yield "Rows of the [results](../results.md), where it is said how they were measured and what they do not show.\n"
    for page, heading, rows in found:
        yield f"**[{heading}](../{page.relative_to(docs)}#{anchor(heading)})**\n"
        yield "\n".join(rows) + "\n"


# --- recipes ---------------------------------------------------------------------------------------------------------


def _files(recipes: Sequence[str]) -> Iterator[str]:
    usual = flattened(read_run_file(RECIPES / f"{BASELINE}.toml"))
    for recipe in recipes:
        file = RECIPES / f"{recipe}.toml"
        yield f"\n## recipes/{recipe}.toml\n"
        if recipe != BASELINE:
            own = flattened(read_run_file(file))
            keys = [key for key in {**usual, **own} if usual.get(key) != own.get(key) and key not in OF_THE_FILE]
            yield "| key | here | plain OPD |\n|---|---|---|"
            yield from (f"| `{key}` | {_cell(own, key)} | {_cell(usual, key)} |" for key in keys)
            yield ""
        yield f"```toml\n{file.read_text().rstrip()}\n```\n"


def _cell(values: dict[str, Any], key: str) -> str:
    return f"`{toml_text(values[key])}`" if key in values else "—"
