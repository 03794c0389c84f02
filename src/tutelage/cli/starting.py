"""`tutelage init`: five questions, and a run file with comments. A recipe says the method; the answers say the rest."""

from __future__ import annotations

import json
import re
import sys
import textwrap
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from tutelage.api.arguments import MAX_NEW_TOKENS, check_output_file
from tutelage.cli.arguments import given_path
from tutelage.cli.output import AsJson, print_document
from tutelage.cli.recipes import PackagedRecipe, packaged_recipes, recipe_named
from tutelage.display.console import TextConsole
from tutelage.errors import ConfigurationError
from tutelage.files import write_whole
from tutelage.paths import check_file_name, expanded_path

__all__ = ["Answers", "init", "plain_recipes", "run_file_text"]

# What a recipe may say of models and prompts without needing more than the five answers.
PLAIN = {"student": {"path", "dtype", "adapter"}, "teacher": {"path", "dtype"}}
PLAIN["data"] = {"system_prompt", "max_prompt_tokens", "verifier"}
COMMENT_COLUMN = 38  # where the recipes have their comments
MAX_LINE = 120
COMMENTS = {
    ("data", "max_prompt_tokens"): "longer prompts are left out",
    ("rollout", "prompts_per_step"): "prompts of one update of the weights",
    ("rollout", "samples_per_prompt"): "answers to each of them",
    ("optimizer", "learning_rate"): "of AdamW",
    ("optimizer", "warmup_steps"): "in which it rises from 0",
    ("checkpoint", "every"): "steps",
    ("evaluation", "every"): "steps",
    ("evaluation", "num_samples"): "answers to each problem",
}
"""of lines of a recipe that have none"""

Answer = TypeVar("Answer", str, int)


@dataclass(frozen=True)
class Answers:
    """What the five questions ask.

    Fields:
      method: name of a recipe.
      student, teacher: model directories or hub ids; the teacher is None where the method has none.
      data: the prompts.
      max_new_tokens: of an answer.
    """

    method: str
    student: str
    teacher: str | None
    data: str
    max_new_tokens: int


def plain_recipes() -> dict[str, PackagedRecipe]:
    """Recipes that need nothing but the five answers: no column, recorded answers or teacher of another kind."""

    def is_plain(recipe: PackagedRecipe) -> bool:
        tables = tomllib.loads(recipe.text)
        return all(tables.get(name, {}).keys() <= keys for name, keys in PLAIN.items())

    return {name: recipe for name, recipe in packaged_recipes().items() if is_plain(recipe)}


def run_file_text(answers: Answers, name: str, path: Path) -> str:
    """A run file with comments: the recipe's, line by line, with the answers in their places.

    Args:
      name: of the run.
      path: of the file, for the commands in its heading.
    """
    recipe = recipe_named(answers.method)
    heading = [
        textwrap.fill(recipe.summary, MAX_LINE, initial_indent="# ", subsequent_indent="# "),
        "#",
        _commented(f"#   tutelage recipes show {recipe.name}", "the recipe, with its paper; its values are kept"),
        _commented(f"#   tutelage doctor {path}", "will it work, in how much memory and time?"),
        _commented(f"#   tutelage train {path}", "afterwards --resume, if it was stopped"),
        _commented(f"#   tutelage report runs/{name}", "curves and answers as one page"),
        "#",
        "# Any value can be set on the command line too: --set optimizer.learning_rate=2e-5",
        "",
    ]
    new = {
        ("", "name"): _setting("name", name, "of the folder of the run, in runs/"),
        ("student", "path"): _setting("path", answers.student, "what learns: a model directory or a hub id"),
        ("teacher", "path"): _setting("path", answers.teacher, "of the same tokenizer"),
        ("data", ""): "[data]\n" + _setting("path", answers.data, 'columns "problem" and, to be judged, "answer"'),
        ("rollout", "max_new_tokens"): _setting("max_new_tokens", answers.max_new_tokens, "longer answers are cut"),
        ("rollout", "max_rows"): _setting("max_rows", 16, "answers decoded at once; fewer take less memory"),
        ("evaluation", ""): "[evaluation]\n" + _commented('# sets = ["problems.jsonl"]', "problems to judge it on"),
    }
    body = (new.get(place) or _explained(place, line) for place, line in _placed(recipe.text))
    return "\n".join([*heading, *body]) + "\n"


def _placed(text: str) -> Iterator[tuple[tuple[str, str], str]]:
    """The lines of a recipe after its heading, each with its table and key; a table's own line has the key ""."""
    table = ""
    for line in text[text.index("\nname = ") + 1 :].splitlines():
        if found := re.match(r"\[+([\w.]+)\]", line):
            table = found[1]
            yield (table, ""), line
        else:
            yield (table, line.partition("=")[0].strip() or "blank"), line


def _explained(place: tuple[str, str], line: str) -> str:
    return _commented(line, COMMENTS[place]) if place in COMMENTS and "#" not in line else line


def _setting(key: str, value: str | int | None, comment: str) -> str:
    shown = value if isinstance(value, int) else json.dumps(value, ensure_ascii=False)  # as TOML has text
    return _commented(f"{key} = {shown}", comment)


def _commented(line: str, comment: str) -> str:
    return f"{line:<{COMMENT_COLUMN - 2}}  # {comment}" if line[:1] != "#" else f"{line:<{COMMENT_COLUMN}}  {comment}"


def _method_names(incomplete: str) -> Iterator[tuple[str, str]]:
    """For the completion of a shell."""
    return ((name, it.summary) for name, it in plain_recipes().items() if name.startswith(incomplete))


ModelOption = Annotated[str | None, typer.Option(help="Model directory or hub id.", callback=given_path)]


def init(
    file: Annotated[
        Path, typer.Argument(help="The run file to write; default: run.toml. None is overwritten.", callback=given_path)
    ] = Path("run.toml"),
    method: Annotated[
        str | None, typer.Option(help="A recipe, such as trb, opd, lora or grpo.", autocompletion=_method_names)
    ] = None,
    student: ModelOption = None,
    teacher: ModelOption = None,
    data: Annotated[
        str | None, typer.Option(help="Prompts: FILE.jsonl, FILE.parquet, or a hub data set.", callback=given_path)
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Answers are cut after this many.", min=1, max=MAX_NEW_TOKENS)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a run file with comments. Five questions, of which those are asked that no option answers."""
    from tutelage.config import resolve_config

    check_output_file(file)
    name = check_file_name(file.stem, "the file's name, which is the run's,", "first-run")
    method = _answer("--method", "Method, a recipe", "trb", _plain_method, method)
    if "teacher" in tomllib.loads(recipe_named(method).text):
        teacher = _answer("--teacher", "Teacher, a model directory or a hub id", "Qwen/Qwen3-8B", _path, teacher)
    elif teacher is not None:
        raise ConfigurationError(f"--teacher is {teacher!r}, but {method} has no teacher. Leave it out.")
    answers = Answers(
        method,
        _answer("--student", "Student, a model directory or a hub id", "Qwen/Qwen3-1.7B-Base", _path, student),
        teacher,
        _answer("--data", "Prompts, a .jsonl or .parquet file or a hub data set", "prompts.jsonl", _path, data),
        _answer("--max-new-tokens", "Longest answer in tokens", 2048, _length, max_new_tokens),
    )
    text = run_file_text(answers, name, file)
    resolve_config(tomllib.loads(text))  # refused before anything is written
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, text)
    if as_json:
        print_document({"name": name, "file": str(file)} | asdict(answers))
    else:
        TextConsole().say(f"written   {file}\ncheck it  tutelage doctor {file}\ntrain     tutelage train {file}")


def _answer(
    option: str, question: str, default: Answer, checked: Callable[[str], Answer], given: Answer | None
) -> Answer:
    """What an option gives, or else a person in a terminal, who is asked until the answer can be."""
    if given is not None:
        return checked(str(given))
    if not _is_asking_possible():
        raise ConfigurationError(
            f"{option} is missing, and there is no terminal to ask in. Give {option}, such as {option} {default}."
        )

    def said(text: str) -> Answer:
        try:
            return checked(text)
        except ConfigurationError as problem:
            raise typer.BadParameter(str(problem)) from problem

    answer: Answer = typer.prompt(question, default=str(default), value_proc=said)
    return answer


def _plain_method(text: str) -> str:
    recipe = recipe_named(text)
    if recipe.name not in plain_recipes():
        raise ConfigurationError(
            f"the recipe {recipe.name} needs more than five answers. Copy it and fill it in: tutelage recipes copy "
            f"{recipe.name}"
        )
    return recipe.name


def _path(text: str) -> str:
    return expanded_path(text, "the answer")


def _length(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MAX_NEW_TOKENS:
        raise ConfigurationError(f"the answer is {text[:40]!r}; expected a number from 1 to {MAX_NEW_TOKENS:,}.")
    return int(text)


def _is_asking_possible() -> bool:
    return sys.stdin.isatty()
