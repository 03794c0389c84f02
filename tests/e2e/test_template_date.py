"""A chat template that asks for the date: what is trained, scored, resumed and evaluated does not depend on the day."""

from __future__ import annotations

import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.support.findings import found
from tests.support.tiny_run import CHAT_TEMPLATE, write_run_file
from tutelage import cli
from tutelage.api.scoring import score
from tutelage.config import build_run, load_config
from tutelage.errors import DataError
from tutelage.tasks import clock
from tutelage.training import Observer, train

DATED = "Today: {{ strftime_now('%d %b %Y') }}\n" + CHAT_TEMPLATE


@pytest.fixture
def home(tmp_path: Path) -> Path:
    path = write_run_file(tmp_path, steps=2)
    for model in ("student", "teacher"):
        (tmp_path / model / "chat_template.jinja").write_text(DATED)
    return path


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets the day that the clock on the wall shows."""

    def day(number: int) -> None:
        monkeypatch.setattr(clock, "_now", lambda: datetime(2026, 3, number, 12))

    return day


def first_prompt(run: Any) -> str:
    return str(run.models.student.tokenizer.decode(run.source.prompts[0].student_tokens)).partition("<")[0].strip()


def test_a_resumed_run_reads_the_prompts_of_the_day_on_which_it_began(home: Path, on: Any) -> None:
    settings = ["evaluation.sets=[]", "rollout.max_new_tokens=6"]
    on(1)
    run = build_run(load_config(home, settings))
    assert first_prompt(run) == "Today: 01 Mar 2026"
    train(run, Observer())
    assert 'template_date = "2026-03-01T12:00:00"' in (run.folder.path / "config.toml").read_text()
    on(2)
    again = build_run(load_config(home, [*settings, "steps=3"]), resume=True)
    assert first_prompt(again) == "Today: 01 Mar 2026"
    new = build_run(load_config(home, [*settings, f"output={home.parent / 'new'}"]))
    assert first_prompt(new) == "Today: 02 Mar 2026"


def test_without_a_question_for_the_date_none_is_kept(tmp_path: Path) -> None:
    run = build_run(load_config(write_run_file(tmp_path), ["evaluation.sets=[]"]))
    assert "data.path" in run.label.settings and "data.template_date" not in run.label.settings


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr("sys.argv", ["tutelage", *map(str, arguments)])
    with pytest.raises(SystemExit) as leaving:
        cli.main()
    assert leaving.value.code in (0, None)


def test_answers_and_scores_of_one_day_serve_on_another(home: Path, on: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    answers, scores = home.parent / "answers.jsonl", home.parent / "scores"
    on(1)
    command(monkeypatch, "generate", home, answers, "--set", "policy=student", "--samples", 2)
    assert {json.loads(line)["template_date"] for line in answers.read_text().splitlines()} == {"2026-03-01T12:00:00"}
    on(2)
    command(monkeypatch, "score", home, "--answers", answers, "--output", scores)
    on(3)
    command(monkeypatch, "score", home, "--answers", answers, "--output", scores, "--resume")
    given = [
        "policy={name='offline'}",
        f"data.scores={scores}",
        "divergence={name='forward_kl',support='teacher_top_k'}",
        "evaluation.sets=[]",
    ]
    run = build_run(load_config(home, given))
    assert first_prompt(run) == "Today: 01 Mar 2026"
    with pytest.raises(Exception, match=r"template\.template_date is '2026-03-04', was '2026-03-01T12:00:00'"):
        build_run(load_config(home, [*given, "data.template_date=2026-03-04", f"output={home.parent / 'other'}"]))


def test_a_checkpoint_is_evaluated_as_its_run_asked(home: Path, on: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    on(1)
    run = build_run(load_config(home, ["evaluation.sets=[]", "rollout.max_new_tokens=6"]))
    train(run, Observer())
    on(2)
    checkpoint = run.folder.checkpoints / "step-000002"
    seen: list[list[int]] = []

    def mark(_engine: object, problems: Any, *_: object, **__: object) -> None:
        seen.append(list(problems.prompts[0].student_tokens))
        raise SystemExit(0)

    monkeypatch.setattr("tutelage.api.evaluating.mark", mark)
    command(monkeypatch, "evaluate", checkpoint, "--task", home.parent / "prompts.jsonl")
    assert seen == [list(run.source.prompts[0].student_tokens)]


def test_answers_of_several_dates_are_refused(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    answers = tmp_path / "answers.jsonl"
    row = {"id": "sum/0", "sample": 0, "response": "0"}
    answers.write_text("".join(json.dumps({**row, "template_date": f"2026-03-0{day}"}) + "\n" for day in (1, 2)))
    refused_scoring(monkeypatch, home, answers, "prompts of different dates (2026-03-01, 2026-03-02;")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"response": "half \ud83d"}, "row 0 (line 1) has half of a surrogate pair in column 'response'"),
        ({"response_tokens": 3}, "row 0 (line 1) has 3 in column 'response_tokens'; expected token ids"),
        ({"response_tokens": [True]}, "row 0 (line 1) has the token True"),
        ({"response_tokens": ["a"]}, "row 0 (line 1) has the token 'a'"),
    ],
)
def test_answers_that_cannot_be_scored(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, row: dict[str, Any], message: str
) -> None:
    answers = tmp_path / "answers.jsonl"
    answers.write_text(json.dumps({"id": "sum/0", "sample": 0, **row}) + "\n")
    refused_scoring(monkeypatch, home, answers, message)


def refused_scoring(monkeypatch: pytest.MonkeyPatch, home: Path, answers: Path, message: str) -> None:
    monkeypatch.setattr("tutelage.config.models.load_language_model", pytest.fail)
    scores = home.parent / "scores"
    with pytest.raises(DataError, match=re.escape(message)):
        score(home, answers, scores, shard=4)
    assert not scores.exists()


def test_doctor_shows_the_date(home: Path, on: Any) -> None:
    on(1)
    shown = found(load_config(home), "prompts").details[0]
    assert shown.startswith("the chat template asks for the date and gets 2026-03-01T12:00:00 (data.template_date;")
