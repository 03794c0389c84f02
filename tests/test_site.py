"""What the site makes from the code says all of it: keys of the run file, members of axes, modules of the package."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any

import pytest

from tests.test_docs import DOCS, KEYS
from tutelage.config.model_sections import ExpertConfig, RouteConfig
from tutelage.losses import LOSSES
from tutelage.policies import POLICIES
from website.api import INTERNAL, api_pages
from website.docstrings import as_markdown, split_fields
from website.methods import METHODS, anchor, evidence, members_of, method_parts, page_of_recipe, recipes_of
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
    for prefix, table in (("teacher.experts[].", ExpertConfig), ("teacher.routes.NAME.", RouteConfig)):
        assert [name for name in table.model_fields if prefix + name not in GENERATED] == []


def test_every_key_of_the_reference_is_known() -> None:
    """The schema has no other key than `KEYS`, but for whole tables and those in lists or by name."""
    single = {name for name in GENERATED if "[]" not in name and "NAME" not in name}
    tables = {name for name in single if any(key.startswith((f"{name}.", f"{name}[]")) for key in GENERATED)}
    assert single - set(KEYS) - tables == set()


def test_types_bounds_and_defaults_are_those_of_the_schema() -> None:
    assert GENERATED["steps"][1:] == ("whole number ≥ 1", "`400`")
    assert GENERATED["reference.share"][1:] == ("number > 0, ≤ 1", "`1.0`")
    assert GENERATED["runtime.strategy"][1:] == ('`"ddp"`, `"fsdp2"`', '`"ddp"`')
    assert GENERATED["student.path"].default == "required" and GENERATED["output"].default == "—"
    assert GENERATED["teacher.experts[].weight"].kind == 'number or `"dynamic"`'
    assert GENERATED["policy"].default == '`{ name = "student" }`'


def test_meanings_are_those_of_the_page_that_explains() -> None:
    assert "| `steps` | whole number ≥ 1 (steps) | `400` | optimiser updates |" in PAGE
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
    packages = [path for path in source.glob("*/__init__.py") if path.parent.name not in INTERNAL]
    missing = {path for path in packages if f"tutelage.{path.parent.name}" not in named}
    assert [path for path in missing if "__all__" in path.read_text()] == []
    assert {"tutelage", "tutelage.policies", "tutelage.losses.tokens", "tutelage.errors"} <= named


# --- methods ---------------------------------------------------------------------------------------------------------

RESULTS = """# What came out

## Two methods

| method | pass@1 % |
|---|---|
| opd | 22.8 ± 1.1 |
| trb | 22.9 ± 0.9<br>+0.1 [-1.0, +1.0] |

## Rewards: F-GRPO's world

| method | pass@1 % |
|---|---|
| before RL | 27.5 |
| GRPO | 46.4 |
| F-GRPO, gamma 0.5 | 45.8 |
"""


def test_every_recipe_has_one_page() -> None:
    pages = [path for path in METHODS.glob("*.md") if path.name != "README.md"]
    named = [recipe for path in pages for recipe in recipes_of(path.read_text())]
    assert sorted(named) == sorted(path.stem for path in (DOCS.parent / "recipes").glob("*.toml"))
    contents = (METHODS / "README.md").read_text()
    for recipe, page in page_of_recipe().items():
        assert any(f"]({page})" in line and f"`{recipe}`" in line for line in contents.splitlines()), recipe


def test_a_methods_members_are_those_that_its_recipe_is_made_of() -> None:
    assert [kind.__name__ for kind in members_of("trb")] == ["TrustRegion", "Teacher", "ReverseKL", "Uniform"]
    names = {kind.__name__ for kind in members_of("kdrl_masked")}
    assert {"Sum", "GroupReward", "TeacherLogRatio", "Correct"} <= names, "parts of parts, and rewards"
    assert "AdapterSettings" in {kind.__name__ for kind in members_of("lora")}


def test_a_page_gets_formulas_differences_and_the_recipe() -> None:
    parts = method_parts((METHODS / "trb.md").read_text())
    assert "mu = argmin KL(mu || q) subject to KL(mu || p) <= kl_radius" in parts
    assert '| `policy.name` | `"trust_region"` | `"student"` |' in parts
    assert (DOCS.parent / "recipes/fixed_budget.toml").read_text().strip() in parts
    assert "reverse_kl" not in parts.partition("## recipes/")[0], "what plain OPD has as well is on its page"


def test_evidence_is_the_rows_of_the_recipe_beside_what_they_are_compared_with() -> None:
    assert evidence(["trb", "fixed_budget"], RESULTS) == [("Two methods", RESULTS.splitlines()[4:8])]
    ((heading, rows),) = evidence(["f_grpo"], RESULTS)
    assert anchor(heading) == "rewards-f-grpos-world"
    assert [row.split("|")[1].strip() for row in rows[2:]] == ["before RL", "F-GRPO, gamma 0.5"]
    assert evidence(["veto"], RESULTS) == []


def test_formulas_of_docstrings_keep_their_lines() -> None:
    text = "Promise.\n\nWith h:\n\n  a   1\n  b   2\n\nThe end of <b> * `*`.\n\nArgs:\n  x: nats."
    expected = (
        "Promise.\n\nWith h:\n\n```text\n  a   1\n  b   2\n```\n\nThe end of &lt;b> \\* `*`.\n\nArgs:\n  x: nats."
    )
    assert as_markdown(text) == expected
    body, meanings = split_fields("Promise.\n\nFields:\n  a, b: of the\n    two.\n  c, ...: see `D`.")
    assert (body, meanings) == ("Promise.", {"a": "of the two.", "b": "of the two.", "c": "see `D`."})


# --- coming from other libraries -------------------------------------------------------------------------------------


def test_keys_beside_those_of_other_libraries_exist() -> None:
    """Below the axes' tables they are fields of members; all others are keys of the schema."""
    tables = {key.partition(".")[0] for key in GENERATED} | {"student", "data", "rollout", "evaluation"}
    members = {field.name for _, each in AXES.values() for member in each.values() for field in fields(member)}
    for page in (DOCS / "usage/coming-from.md", DOCS.parent / "README.md"):
        section = page.read_text().partition("Coming from TRL")[2].partition("Where things are")[0]
        cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| ") and "`" in line]
        named = [name for cell in cells for name in re.findall(r"`([a-z_]+(?:\.[a-z_]+)*)`", cell)]
        assert len(named) > 8
        for name in named:
            table, _, last = name.rpartition(".")
            known = name in GENERATED or name in tables or (table in ("divergence", "") and last in members)
            assert known or name in LOSSES or name in POLICIES, name
