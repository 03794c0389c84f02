"""A model judged from Python: numbers, answers and files; refusals before any weights are loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tutelage
from tests.support.tiny_run import save_pair, write_prompts
from tutelage.errors import ConfigurationError, DataError, OutputExistsError

SHORT: Any = {"samples": 2, "max_new_tokens": 4, "device": "cpu", "limit": 3}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    save_pair(folder)
    write_prompts(folder / "sums.jsonl")
    write_prompts(folder / "more.jsonl", 2)
    return folder


def test_numbers_and_answers_of_each_set(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sets = [home / "sums.jsonl", home / "more.jsonl"]
    found = tutelage.evaluate(home / "student", sets, output=tmp_path / "out", progress=False, **SHORT)
    assert capsys.readouterr().out == ""
    assert [(each.name, each.num_problems, each.num_samples) for each in found.results] == [
        ("sums", 3, 2),
        ("more", 2, 2),
    ]
    assert list(found.frame.index) == ["sums", "more"] and found.frame["pass_at_k.2"].between(0, 1).all()
    assert list(found.answers("more")["problem_id"]) == ["sum/0", "sum/0", "sum/1", "sum/1"]
    assert [json.loads(file.read_text()) for file in found.files] == found.as_dict()["results"]
    again = tutelage.evaluate(str(home / "student"), str(sets[0]), progress=False, **SHORT)
    assert again.samples["sums"] == found.samples["sums"] and again.files == []
    with pytest.raises(ConfigurationError, match="no set is called 'less'; there are sums, more"):
        found.answers("less")


def test_what_cannot_be_judged_is_refused_first(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tutelage.config.models.load_language_model", lambda *_, **__: pytest.fail("weights"))
    student, problems = home / "student", home / "sums.jsonl"
    for options, message in (
        ({"sample": 2}, r"'sample'. Did you mean samples\?"),
        ({"samples": 0}, "samples is 0; expected a number of at least 1"),
        ({"dtype": "int3"}, "dtype is 'int3'; expected one of"),
        ({"select": ["best"]}, "best"),
        ({"forecast": 8, "temperature": 0}, "forecast"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            tutelage.evaluate(student, problems, progress=False, **options)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="nowhere.jsonl"):
        tutelage.evaluate(student, tmp_path / "nowhere.jsonl", progress=False)
    with pytest.raises(OutputExistsError, match="nothing is overwritten"):
        tutelage.evaluate(student, problems, output=tmp_path, progress=False)
