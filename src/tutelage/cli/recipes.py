"""`tutelage recipes`: the run files that come with the package, one per method. They are read as data, unchecked."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from tutelage.api.arguments import check_output_file
from tutelage.cli.arguments import given_path
from tutelage.cli.output import AsJson, print_document
from tutelage.display.console import TextConsole
from tutelage.errors import ConfigurationError
from tutelage.files import write_whole

__all__ = ["PackagedRecipe", "packaged_recipes", "recipe_named", "recipe_names", "recipes_app"]

SUFFIX = ".toml"


@dataclass(frozen=True)
class PackagedRecipe:
    """A recipe by its name, and the text of its file."""

    name: str
    text: str

    @property
    def summary(self) -> str:
        """The first sentence of its heading."""
        heading = re.match(r"(?:#.*\n)+", self.text)
        words = " ".join(line.lstrip("# ") for line in (heading[0] if heading else "").splitlines())
        return re.split(r"(?<=\.)(?<!Dr\.)\s+(?=[A-Z])", words, maxsplit=1)[0].strip()


@cache
def packaged_recipes() -> dict[str, PackagedRecipe]:
    """Every recipe by its name, in the order of names."""
    folder = resources.files("tutelage") / "recipes"
    files = sorted((file for file in folder.iterdir() if file.name.endswith(SUFFIX)), key=lambda file: file.name)
    named = {file.name.removesuffix(SUFFIX): file.read_text(encoding="utf-8") for file in files}
    return {name: PackagedRecipe(name, text) for name, text in named.items()}


def recipe_named(name: str) -> PackagedRecipe:
    """A recipe, by its name with or without `.toml`.

    Raises:
      ConfigurationError: there is none of that name; the nearest one is named.
    """
    recipes = packaged_recipes()
    if (found := recipes.get(name.removesuffix(SUFFIX))) is not None:
        return found
    near = difflib.get_close_matches(name, recipes, n=1, cutoff=0.5)
    hint = f"Did you mean {near[0]}?" if near else "tutelage recipes lists them."
    raise ConfigurationError(f"there is no recipe {name[:200]!r}. {hint}")


def recipe_names(incomplete: str) -> Iterator[tuple[str, str]]:
    """Names that begin so, with a line each, for the completion of a shell."""
    return ((name, it.summary) for name, it in packaged_recipes().items() if name.startswith(incomplete))


Name = Annotated[str, typer.Argument(help="Of a recipe, such as trb.", autocompletion=recipe_names)]

recipes_app = typer.Typer(help="The run files that come with the package, one per method.")


@recipes_app.callback(invoke_without_command=True)
def listed(context: typer.Context, as_json: AsJson = False) -> None:
    """List the recipes, with a line each."""
    if context.invoked_subcommand is not None:
        return
    if as_json:
        print_document([{"name": it.name, "summary": it.summary} for it in packaged_recipes().values()])
        return
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for recipe in packaged_recipes().values():
        table.add_row(recipe.name, recipe.summary)
    TextConsole().print(table)


@recipes_app.command()
def show(name: Name, as_json: AsJson = False) -> None:
    """Print a recipe."""
    recipe = recipe_named(name)
    if as_json:
        print_document({"name": recipe.name, "summary": recipe.summary, "text": recipe.text})
    else:
        TextConsole().say(recipe.text.rstrip("\n"))


@recipes_app.command()
def copy(
    name: Name,
    destination: Annotated[
        Path, typer.Argument(help="A new file, or a folder for it; default: here.", callback=given_path)
    ] = Path(),
    as_json: AsJson = False,
) -> None:
    """Write a recipe to a new file, to be changed and run."""
    recipe = recipe_named(name)
    path = destination / f"{recipe.name}{SUFFIX}" if destination.is_dir() else destination
    check_output_file(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, recipe.text)
    if as_json:
        print_document({"name": recipe.name, "file": str(path)})
    else:
        TextConsole().say(f"written   {path}\ncheck it  tutelage doctor {path}")
