"""Whatever the files of a run hold, a report is written that says what it left out, or one line says what to do."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.run_folders import write_lines, write_run
from tutelage.errors import TutelageError
from tutelage.report import write_report

pytestmark = pytest.mark.runs

VALUES: list[Any] = [
    None, True, "0.5", "", [], [1, 2], {}, {"a": {"b": []}}, -1, 0.5, 10**400, 2**53, 1e308, -1e308, float("nan"),
    float("inf"), float("-inf"), "\ud83d", "\x00\x1b[31m\u202e", "x" * 100_000,
]  # fmt: skip
BYTES = [
    b"", b"\x00" * 1000, b"\n\n\n", b"\xff\xfe\x00{", b"PK\x03\x04" + bytes(range(256)), b"[" * 100_000 + b"\n{}\n",
    b'{"step": 0, "loss": 1.0', b'{"step": 0}\r\n{"step": 1}\r\n', b"\xef\xbb\xbf" + b'{"step": 0, "loss": 1}\n',
    b'{"step": 1' + b"0" * 5000 + b"}\n", b'{"step": 0, "text": "\xff"}\n{"step": 1}\n', b"null\n", b"1\n2\n",
]  # fmt: skip
FILES = (
    "metrics.jsonl", "evaluations.jsonl", "samples.jsonl", "config.toml", "evaluations/step-000003-sums.jsonl",
    "evaluations",
)  # fmt: skip


def with_bytes(dice: random.Random, run: Path) -> None:
    path = run / dice.choice(FILES[:-1])
    path.write_bytes(dice.choice(BYTES))


def with_bytes_inside(dice: random.Random, run: Path) -> None:
    path = run / dice.choice(FILES[:-1])
    content = bytearray(path.read_bytes())
    place = dice.randrange(len(content))
    content[place : place + dice.randrange(20)] = dice.randbytes(dice.randrange(20))
    path.write_bytes(bytes(content))


def without_a_file(dice: random.Random, run: Path) -> None:
    path = run / dice.choice(FILES)
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def with_a_folder_for_a_file(dice: random.Random, run: Path) -> None:
    path = run / dice.choice(FILES[:-1])
    path.unlink()
    path.mkdir()


def with_wrong_values(dice: random.Random, run: Path) -> None:
    path = run / dice.choice(("metrics.jsonl", "evaluations.jsonl", "samples.jsonl", FILES[-2]))
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:
        for key in record:
            if dice.random() < 0.3:
                record[key] = dice.choice(VALUES)
        if isinstance(record.get("tokens"), dict):
            record["tokens"][dice.choice(list(record["tokens"]))] = dice.choice(VALUES)
    write_lines(path, records)


def with_wrong_settings(dice: random.Random, run: Path) -> None:
    lines = (run / "config.toml").read_text().splitlines()
    place = dice.randrange(4)
    lines[place] = (
        lines[place].split("=")[0] + "= " + dice.choice(['"\\u202e"', "[]", "{}", "1e400", "nan", "-1", "true"])
    )
    (run / "config.toml").write_text("\n".join(lines))


DAMAGES: list[Callable[[random.Random, Path], None]] = [
    with_bytes, with_bytes_inside, without_a_file, with_a_folder_for_a_file, with_wrong_values, with_wrong_settings,
]  # fmt: skip


def outcome(run: Path) -> str:
    """The page that was written, or the line that says why there is none."""
    try:
        return write_report([run], run.parent / "page.html").path.read_text()
    except (TutelageError, OSError) as problem:
        line = str(problem)
        assert "\n" not in line and line.isprintable(), line
        assert len(line) < 600
        return line


@pytest.mark.parametrize("seed", range(100))
def test_a_damaged_run_is_a_page_or_a_line(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if seed % 33:  # drawing takes most of the time
        monkeypatch.setattr("tutelage.report.page.draw_figures", lambda methods: [])
    dice = random.Random(seed)
    run = write_run(tmp_path / "run")
    for damage in dice.choices(DAMAGES, k=dice.choice((1, 1, 2, 3))):
        try:
            damage(dice, run)
        except (AttributeError, IndexError, OSError, RecursionError, TypeError, ValueError):
            continue  # an earlier damage left nothing to damage
    assert outcome(run)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("comparison.json", "["),
        ("comparison.json", "[]"),
        ("comparison.json", '{"methods": ["../../elsewhere"]}'),
        ("comparison.json", '{"methods": [{"a": 1}], "missing": 3}'),
        ("comparison.json", '{"methods": ["opd"], "measures": {"a": 1}, "summaries": 3}'),
        ("comparison.json", '{"methods": ["opd"], "measures": {"a": 1}, "summaries": {"opd": {"a": {"mean": null}}}}'),
        ("comparison.json", '{"methods": ["opd"], "measures": {"a": 1}, "summaries": {"opd": {"a": {}}}, "notes": 1}'),
        ("plan.json", "[" * 100_000),
        ("plan.json", '{"methods": 3}'),
    ],
)
def test_a_damaged_comparison_is_a_line(
    tmp_path: Path, name: str, content: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tutelage.report.page.draw_figures", lambda methods: [])
    write_run(tmp_path / "c/runs/opd/seed-0", name="opd")
    (tmp_path / "c" / name).write_text(content)
    line = outcome(tmp_path / "c")
    assert name in line and not line.startswith("<")


def test_a_page_says_what_it_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tutelage.report.page.draw_figures", lambda methods: [])
    run = write_run(tmp_path / "run")
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    metrics[2]["loss"], metrics[3]["loss"], metrics[4]["step"] = "0.5", {"mean": 0.5}, "four"
    write_lines(run / "metrics.jsonl", metrics)
    (run / "samples.jsonl").write_text('{"step": 0, "prompt_number": 3}\n' + (run / "samples.jsonl").read_text())
    (run / "evaluations/step-000003-sums.jsonl").write_text("{\n\x00\n")
    report = write_report([run], tmp_path / "page.html")
    assert len(report.left_out) == 4
    for said in (
        "2 lines without a number as loss",
        "1 line without a number as step",
        "1 of the rollouts to be shown cannot be read",
        "2 lines cannot be read; line 1 is not JSON",
    ):
        assert said in report.path.read_text()
    assert '<a href="#left-out">' in report.path.read_text()
    assert write_report([write_run(tmp_path / "whole")]).left_out == []
