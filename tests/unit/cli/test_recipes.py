"""The recipes of the package: listed with a line each, shown, and copied to a new file."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from tutelage.cli import app
from tutelage.cli.recipes import packaged_recipes, recipe_named, recipe_names
from tutelage.errors import ConfigurationError, OutputExistsError

RECIPES = Path(__file__).parents[3] / "recipes"


def test_the_package_has_every_recipe() -> None:
    assert {f"{name}.toml": it.text for name, it in packaged_recipes().items()} == {
        path.name: path.read_text() for path in RECIPES.glob("*.toml")
    }


@pytest.mark.parametrize("name", packaged_recipes())
def test_each_says_in_a_sentence_what_it_is(name: str) -> None:
    summary = recipe_named(name).summary
    assert 30 < len(summary) < 260 and summary.endswith(".") and "#" not in summary and "  " not in summary


def test_they_are_listed_and_shown() -> None:
    listed = CliRunner().invoke(app, ["recipes"])
    assert listed.exit_code == 0
    assert all(f"\n{name} " in f"\n{listed.output}" for name in packaged_recipes())
    shown = CliRunner().invoke(app, ["recipes", "show", "trb.toml"])
    assert shown.output == (RECIPES / "trb.toml").read_text()


def test_a_copy_is_the_file_and_overwrites_none(tmp_path: Path) -> None:
    def copy(*words: str) -> object:
        return CliRunner().invoke(app, ["recipes", "copy", *words]).exception

    assert copy("trb", str(tmp_path)) is None and copy("trb", str(tmp_path / "new/mine.toml")) is None
    for path in (tmp_path / "trb.toml", tmp_path / "new/mine.toml"):
        assert path.read_bytes() == (RECIPES / "trb.toml").read_bytes()
        path.write_text("mine")
        assert isinstance(copy("trb", str(path)), OutputExistsError) and path.read_text() == "mine"


@pytest.mark.parametrize(("name", "hint"), [("tbr", "Did you mean trb?"), ("../trb", ""), ("nothing like it", "lists")])
def test_a_name_that_is_none_is_answered_with_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(ConfigurationError, match="there is no recipe") as refused:
        recipe_named(name)
    assert hint in str(refused.value)


def test_a_shell_is_told_the_names() -> None:
    assert [name for name, _ in recipe_names("kdrl")] == ["kdrl", "kdrl_annealed", "kdrl_masked"]
