"""`tutelage init` writes the recipe with the answers in their places, and refuses what cannot become a run."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tutelage.cli import app
from tutelage.cli.recipes import packaged_recipes
from tutelage.cli.starting import Answers, plain_recipes, run_file_text
from tutelage.config import load_config
from tutelage.errors import ConfigurationError, OutputExistsError

ANSWERS = Answers("trb", "student folder", 'of "Ä"', "prompts.jsonl", 77)
GIVEN = {"--method": "trb", "--student": "s", "--teacher": "t", "--data": "d.jsonl", "--max-new-tokens": "9"}


def invoke(file: Path, given: dict[str, str], **settings: Any) -> Any:
    words = [word for option, value in given.items() for word in (option, value)]
    return CliRunner().invoke(app, ["init", str(file), *words], **settings)


@pytest.mark.parametrize("method", plain_recipes())
def test_it_is_the_recipe_with_the_answers(method: str, tmp_path: Path) -> None:
    recipe = tomllib.loads(packaged_recipes()[method].text)
    answers = replace(ANSWERS, method=method) if "teacher" in recipe else replace(ANSWERS, method=method, teacher=None)
    text = run_file_text(answers, "mine", tmp_path / "mine.toml")
    written = tomllib.loads(text)
    recipe["name"], recipe["student"]["path"], recipe["data"]["path"] = "mine", answers.student, answers.data
    recipe["rollout"] |= {"max_new_tokens": 77, "max_rows": 16}
    if answers.teacher is not None:
        recipe["teacher"]["path"] = answers.teacher
    assert written == recipe
    assert max(map(len, text.splitlines())) <= 120 + len(str(tmp_path)) and text.count("  # ") > 12
    (tmp_path / "mine.toml").write_text(text)
    assert load_config(tmp_path / "mine.toml").rollout.max_new_tokens == 77


def test_options_answer_every_question(tmp_path: Path) -> None:
    done = invoke(tmp_path / "new/first.toml", GIVEN)
    assert done.exit_code == 0 and f"tutelage doctor {tmp_path}/new/first.toml" in done.output
    config = load_config(tmp_path / "new/first.toml")
    assert (config.name, config.student.path, config.teacher.path, config.data.path) == ("first", "s", "t", "d.jsonl")


def test_a_person_is_asked_for_the_rest_until_it_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tutelage.cli.starting._is_asking_possible", lambda: True)
    said = "opsd\ntrbb\nlora\nmy-teacher\n\nd.jsonl\nmany\n64\n"
    done = invoke(tmp_path / "run.toml", {}, input=said)
    assert done.exit_code == 0, done.output
    assert "needs more than five answers" in done.output and "Did you mean trb?" in done.output
    config = load_config(tmp_path / "run.toml")
    assert config.student.adapter is not None and config.rollout.max_new_tokens == 64
    assert (config.student.path, config.teacher.path) == ("Qwen/Qwen3-1.7B-Base", "my-teacher")


REFUSED: dict[str, tuple[dict[str, str | None], str]] = {
    "no terminal to ask in": ({"--data": None}, "--data is missing.*no terminal"),
    "a recipe that needs more": ({"--method": "opsd"}, "recipe opsd needs more"),
    "no recipe": ({"--method": "nothing"}, "no recipe 'nothing'"),
    "a teacher for none": ({"--method": "grpo"}, "grpo has no teacher"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_become_a_run_is_refused(case: str, tmp_path: Path) -> None:
    change, message = REFUSED[case]
    done = invoke(tmp_path / "run.toml", {key: value for key, value in (GIVEN | change).items() if value is not None})
    assert isinstance(done.exception, ConfigurationError)
    with pytest.raises(ConfigurationError, match=message):
        raise done.exception
    assert list(tmp_path.iterdir()) == []


def test_no_file_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("mine")
    assert isinstance(invoke(tmp_path / "run.toml", GIVEN).exception, OutputExistsError)
    assert (tmp_path / "run.toml").read_text() == "mine"
