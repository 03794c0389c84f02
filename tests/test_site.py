"""What the site makes from the code says all of it: keys of the run file, members of axes, modules of the package."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from tests.test_docs import DOCS, KEYS
from tutelage.config import RunConfig
from tutelage.config.schema import ExpertConfig, ModelConfig
from website.api import api_pages
from website.run_file import AXES, run_file_keys, run_file_page

GENERATED = {key.name: key for key in run_file_keys()}
PAGE = run_file_page()
# How the reference writes a key that stands in each table of a list.
IN_LISTS = {"phase.": "phase[].", "evaluation.sets.": "evaluation.sets[]."}


def in_reference(key: str) -> str:
    for plain, written in IN_LISTS.items():
        if key.startswith(plain):
            return written + key.removeprefix(plain)
    return key


@pytest.mark.parametrize("key", KEYS)
def test_the_run_file_reference_has_every_key(key: str) -> None:
    assert f"| `{in_reference(key)}` |" in PAGE


def test_the_run_file_reference_has_the_tables_of_other_models() -> None:
    for prefix, table in (("teacher.experts[].", ExpertConfig), ("teacher.routes.NAME.", ModelConfig)):
        assert [name for name in table.model_fields if prefix + name not in GENERATED] == []


def test_every_key_of_the_reference_is_known() -> None:
    """The schema has no other key: tables of the run, then those of `KEYS`, routes and experts."""
    tables = {name for name in RunConfig.model_fields if f"{name}." in " ".join(GENERATED)}
    own = {name for name in GENERATED if not name.startswith(("teacher.experts[]", "teacher.routes.NAME"))}
    assert own - {in_reference(key) for key in KEYS} - tables - {"student.adapter", "evaluation.sets", "phase"} == set()


def test_types_bounds_and_defaults_are_those_of_the_schema() -> None:
    assert GENERATED["steps"][1:] == ("whole number ≥ 1", "`400`")
    assert GENERATED["reference.share"][1:] == ("number > 0, ≤ 1", "`1.0`")
    assert GENERATED["runtime.strategy"][1:] == ('`"ddp"`, `"fsdp2"`', '`"ddp"`')
    assert GENERATED["student.path"].default == "required" and GENERATED["output"].default == "—"
    assert GENERATED["teacher.experts[].weight"].kind == 'number or `"dynamic"`'
    assert GENERATED["policy"].default == '`{ name = "student" }`'


def test_meanings_are_those_of_the_page_that_explains() -> None:
    assert "| `steps` | whole number ≥ 1 | `400` | steps | optimiser updates |" in PAGE
    assert "](#" not in PAGE, "anchors are of the page that explains"


@pytest.mark.parametrize("heading", AXES)
def test_the_run_file_reference_has_every_member_with_its_fields(heading: str) -> None:
    axis, members = AXES[heading]
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    seen: set[type[Any]] = set()
    for name, member in members.items():
        if member not in seen:  # else it is an older name
            text = section.partition(f"### {axis}: {name} ")[2].partition("\n### ")[0]
            assert (
                text
                and [field.name for field in fields(member) if field.init and f"| `{field.name}` |" not in text] == []
            )
        seen.add(member)


def test_every_package_has_a_page_of_the_python_reference() -> None:
    named = {name for name, _, _ in api_pages()}
    source = DOCS.parent / "src" / "tutelage"
    packages = {f"tutelage.{path.parent.name}" for path in source.glob("*/__init__.py")}
    assert packages - named == {"tutelage.cli"}, "which is for a person at a terminal"
