"""With --json a command prints one document, and what goes wrong is JSON too."""

from __future__ import annotations

import json
import math
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from tutelage.cli import app, entry
from tutelage.cli.output import document_alone, is_json_asked, print_document
from tutelage.cli.recipes import packaged_recipes
from tutelage.errors import ConfigurationError, RunInterrupted


def commands(group: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    for each, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{name}{each} ")
        if not hasattr(command, "commands") or command.invoke_without_command:
            yield f"{name}{each}", command


COMMANDS = dict(commands(typer.main.get_command(app)))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_can_answer_a_program(name: str) -> None:
    assert any("--json" in parameter.opts for parameter in COMMANDS[name].params)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    """`main` with these words: exit code, standard output, lines of standard error."""
    monkeypatch.delenv("TUTELAGE_TRACEBACK", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def command(*words: str) -> tuple[Any, str, list[Any]]:
        monkeypatch.setattr(sys, "argv", ["tutelage", *words])
        capfd.readouterr()
        with warnings.catch_warnings(), pytest.raises(SystemExit) as leaving:
            entry.main()
        out, err = capfd.readouterr()
        return leaving.value.code, out, [json.loads(line) for line in err.splitlines()]

    return command


def test_a_document_is_alone(run: Any) -> None:
    code, out, errors = run("recipes", "--json")
    assert (code, errors) == (0, []) and [it["name"] for it in json.loads(out)] == list(packaged_recipes())
    code, out, errors = run("recipes", "show", "trb", "--json")
    assert (code, errors) == (0, []) and json.loads(out)["text"] == packaged_recipes()["trb"].text


def test_what_others_print_is_no_part_of_it(capfd: pytest.CaptureFixture[str]) -> None:
    with document_alone():
        print("a library says something")
        print_document({"loss": math.nan, "name": "é \ud83d", "sums": [1, math.inf]})
    out, err = capfd.readouterr()
    assert json.loads(out) == {"loss": None, "name": "é \ud83d", "sums": [1, None]} and out.isascii()
    assert err == "a library says something\n"
    print_document([])
    assert capfd.readouterr().out == "[]\n"


@pytest.mark.parametrize(
    ("words", "kind", "message"),
    [
        (["recipes", "show", "trbb"], "ConfigurationError", "there is no recipe 'trbb'. Did you mean trb?"),
        (["report", "nowhere"], "DataError", "nowhere"),
        (["train", "nowhere.toml"], "ConfigurationError", "run file 'nowhere.toml' does not exist"),
        (["nope"], "CommandLineError", "No such command 'nope'"),
        (["train"], "CommandLineError", "Missing argument"),
        (["evaluate", "m", "--task", "t", "--samples", "0"], "CommandLineError", "Invalid value for '--samples'"),
    ],
)
def test_what_is_wrong_is_an_object_with_the_exit_code(run: Any, words: list[str], kind: str, message: str) -> None:
    code, out, (said,) = run(*words, "--json")
    assert (code, out) == (2, "")
    assert said["error"]["kind"] == kind and said["error"]["exit_code"] == 2 and message in said["error"]["message"]


@pytest.mark.parametrize(
    ("problem", "code", "message"),
    [
        (ConfigurationError("two\nlines " + "x" * 9_000), 2, "two\nlines " + "x" * 9_000),
        (RunInterrupted("stopped after 3 steps"), 130, "stopped after 3 steps"),
        (MemoryError(), 2, "out of memory (MemoryError)"),
        (KeyError("surprise"), 70, "KeyError, which is a fault of Tutelage and not yours"),
        (130, 130, "stopped by Ctrl-C"),
    ],
)
def test_every_way_to_end_is_said(
    run: Any, monkeypatch: pytest.MonkeyPatch, problem: Exception | int, code: int, message: str
) -> None:
    def command(**_: object) -> int:
        warnings.warn("look [here]\x1b[2J", UserWarning, stacklevel=1)
        if isinstance(problem, int):
            return problem
        raise problem

    monkeypatch.setattr(entry, "app", command)
    monkeypatch.setattr(warnings, "filters", [])
    found, out, (warning, error) = run("train", "--json")
    kind = "KeyboardInterrupt" if isinstance(problem, int) else type(problem).__name__
    assert (found, out, warning) == (code, "", {"warning": "look [here]\x1b[2J"})
    assert error["error"].keys() == {"kind", "message", "exit_code"}
    assert (error["error"]["kind"], error["error"]["exit_code"]) == (kind, code)
    assert error["error"]["message"].startswith(message)


def test_a_word_that_is_a_value_asks_for_nothing() -> None:
    assert is_json_asked(["train", "run.toml", "--json"]) and not is_json_asked(["train", "a--json.toml"])
