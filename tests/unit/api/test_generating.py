"""Answers drawn from Python, with and without a file, all or the best of several."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tutelage
from tests.support.tiny_run import write_run_file
from tutelage.errors import ConfigurationError, OutputExistsError

SHORT = {"rollout.max_new_tokens": 4}


@pytest.fixture(scope="module")
def run_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run_file(tmp_path_factory.mktemp("home"))


def test_answers_come_back_and_are_written(run_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "new" / "answers.jsonl"
    drawn = tutelage.generate(run_file, SHORT, output=file, samples=2, limit=3)
    assert [(row["id"], row["sample"]) for row in drawn.records] == [(f"sum/{i}", k) for i in range(3) for k in (0, 1)]
    assert [json.loads(line) for line in file.read_text().splitlines()] == drawn.records
    assert drawn.as_dict() == {"num_samples": 6, "num_correct": drawn.num_correct, "output": str(file)}
    assert list(drawn.frame["response"]) == [row["response"] for row in drawn.records]
    assert tutelage.generate(run_file, SHORT, samples=2, limit=3).records == drawn.records


def test_one_of_several_is_kept(run_file: Path) -> None:
    every = tutelage.generate(run_file, SHORT, limit=2, best_of=tutelage.BestOf(3, "surprisal", keeps_all=True))
    kept = tutelage.generate(run_file, SHORT, limit=2, best_of=tutelage.BestOf(3, "surprisal"))
    assert len(every.records) == 6 and len(kept.records) == 2
    selected = [row for row in every.records if row.pop("selected")]
    assert kept.records == selected


def test_what_cannot_be_drawn_is_refused(run_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="--best-of is 3 and --samples is 4; one answer is kept of every 3"):
        tutelage.generate(run_file, samples=4, best_of=tutelage.BestOf(3, "majority"))
    with pytest.raises(ConfigurationError, match="samples is 0"):
        tutelage.generate(run_file, best_of=tutelage.BestOf(0, "majority"))
    with pytest.raises(ConfigurationError, match="step is -1"):
        tutelage.generate(run_file, step=-1)
    with pytest.raises(OutputExistsError, match="already exists"):
        tutelage.generate(run_file, output=run_file)
