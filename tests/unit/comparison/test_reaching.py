"""Where a curve reaches a value, and what a run has spent until it was as good as another one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tutelage.comparison.reaching import costs_of_reaching, first_reaching
from tutelage.report import RunRecords, read_run


def run_with(folder: Path, evaluations: list[dict[str, Any]], tokens: float) -> RunRecords:
    folder.mkdir()
    steps = [{"step": step, "seconds": 2.0, "response_tokens_total": tokens} for step in range(10)]
    for name, rows in (("metrics.jsonl", steps), ("evaluations.jsonl", evaluations)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_run(folder)


def looks(key: str, *values: float) -> list[dict[str, Any]]:
    return [{"step": 5 * place, "name": "sums", "pass_at_1": 0.0, key: value} for place, value in enumerate(values)]


def test_the_first_crossing_counts_and_lines_are_straight() -> None:
    assert first_reaching([0, 10, 20], [0.0, 1.0, 0.0], 0.25) == pytest.approx(2.5)
    assert first_reaching([0, 10], [1.0, 0.0], 0.5) == 0
    assert first_reaching([0, 10], [0.0, 0.4], 0.5) is None


def test_costs_until_nine_tenths_of_the_way_of_the_reference(tmp_path: Path) -> None:
    slow = run_with(tmp_path / "slow", looks("reverse_kl", 8.0, 5.0, 2.0), 10.0)
    fast = run_with(tmp_path / "fast", looks("reverse_kl", 8.0, 1.0, 1.5), 30.0)
    # The target is 8 - 0.9 * 6 = 2.6, which the slow run has at step 9 and the fast one at step 5.4 / 7 * 5.
    assert costs_of_reaching(slow, slow) == pytest.approx(
        {"steps_to_90": 9.0, "tokens_to_90": 90.0, "seconds_to_90": 18}
    )
    step = 5.4 / 7 * 5
    assert costs_of_reaching(fast, slow) == pytest.approx(
        {"steps_to_90": step, "tokens_to_90": 30 * step, "seconds_to_90": 2 * step}
    )
    assert costs_of_reaching(slow, fast) == {}, "it never gets so far"


def test_without_a_teachers_reading_pass_at_1_is_looked_at(tmp_path: Path) -> None:
    plain = run_with(tmp_path / "plain", looks("pass_at_1", 0.0, 0.5), 10.0)
    read = run_with(tmp_path / "read", looks("reverse_kl", 8.0, 1.0), 10.0)
    assert costs_of_reaching(plain, plain)["steps_to_90"] == pytest.approx(4.5)
    assert costs_of_reaching(plain, read) == {}, "a reference that never gets better is no aim"
