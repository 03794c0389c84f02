"""Where tests lie: unit tests mirror the source tree, what several tests share is in one folder."""

from __future__ import annotations

from pathlib import Path

import pytest

TESTS = Path(__file__).parent
SOURCE = TESTS.parent / "src" / "tutelage"


@pytest.mark.parametrize("path", sorted((TESTS / "unit").rglob("test_*.py")), ids=lambda path: path.stem)
def test_unit_tests_mirror_the_source_tree(path: Path) -> None:
    """unit/a/test_b.py is of a/b.py; test_b_while_c.py of it in some respect, test_members.py of several files."""
    place = path.parent.relative_to(TESTS / "unit")
    folder = SOURCE / place
    assert folder.is_dir(), f"there is no folder {place} in the source"
    subject = path.stem.removeprefix("test_")
    modules = {each.stem for each in folder.iterdir()} | {"members", folder.name}
    assert any(subject == name or subject.startswith(f"{name}_") for name in modules), f"{place} has no {subject}.py"


def test_what_is_shared_is_in_support() -> None:
    found = {
        path.relative_to(TESTS)
        for path in TESTS.rglob("*.py")
        if not path.name.startswith("test_") and path.name not in {"__init__.py", "conftest.py"}
    }
    assert [path for path in found if path.parts[0] != "support"] == []
