"""From the files of runs to numbers, and from numbers to paired differences."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tutelage.comparison.measures import MEASURES, area_under, measure_named, measure_run, summarise_methods
from tutelage.evaluation import GREEDY_SUFFIX
from tutelage.report import read_run, records


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_both_sides_file_greedy_answers_under_one_name() -> None:
    assert records.GREEDY_SUFFIX == GREEDY_SUFFIX


def test_area_is_the_mean_height() -> None:
    assert area_under({0: 0.2, 10: 0.2}) == pytest.approx(0.2)
    assert area_under({30: 1.0, 0: 0.0, 10: 1.0}) == pytest.approx((5 + 20) / 30)
    assert area_under({4: 0.3}) is None


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Three steps; the teacher decodes along in the first. Two sets, sampled and greedy, best in the middle."""
    steps = [
        {"step": 0, "reward": 0.5, "seconds": 2.0, "response_tokens_total": 100.0, "tokens_per_teacher_forward": 2.5},
        {"step": 1, "reward": 0.25, "seconds": 1.0, "response_tokens_total": 80.0},
        {"step": 2, "reward": 0.0, "seconds": 1.0, "response_tokens_total": 60.0},
    ]
    write(tmp_path / "metrics.jsonl", steps)
    values = {"a": (0.1, 0.5, 0.3), "b": (0.1, 0.7, 0.5), "a-greedy": (0.0, 0.2, 0.4), "b-greedy": (0.0, 0.4, 0.4)}
    rows = [
        {"step": step, "name": name, "pass_at_1": value[place]}
        for place, step in enumerate((0, 2, 3))
        for name, value in values.items()
    ]
    write(tmp_path / "evaluations.jsonl", rows)
    return tmp_path


def test_measures_of_a_run(run: Path) -> None:
    found = measure_run(read_run(run), checkpoint_rule="last", early_steps=2, num_rollouts=8)
    each = {"pass_at_1/a": 0.3, "pass_at_1/b": 0.5}
    assert found == pytest.approx(
        each
        | {
            "pass_at_1": 0.4,
            "pass_at_1_greedy": 0.4,
            "area": ((0.1 + 0.6) / 2 * 2 + (0.6 + 0.4) / 2) / 3,
            "early_reward": 0.375,
            "seconds": 4.0,
            "response_tokens": 240.0,
            "teacher_forwards": 100 / 2.5 + 8 + 8,
            "tokens_per_teacher_forward": 240 / 56,
        }
    )
    best = measure_run(read_run(run), checkpoint_rule="best", early_steps=2, num_rollouts=8)
    assert (best["pass_at_1"], best["pass_at_1_greedy"]) == pytest.approx((0.6, 0.3))


def test_what_a_teacher_and_given_texts_say_of_the_reported_checkpoint(run: Path) -> None:
    read = {"reverse_kl": 2.0, "teacher_logprob": -3.0, "support_overlap": 0.4, "student_entropy": 1.5}
    rows = [
        {"step": step, "name": "a", "pass_at_1": 0.1 * step, "repeated_4grams": 0.2, "truncation_rate": 0.25, **read}
        for step in (0, 3)
    ]
    write(run / "evaluations.jsonl", [rows[0] | {"reverse_kl": 9.0}, rows[1]])
    texts = {"facts": (True, -1.0), "lists": (True, -2.0), "plain": (False, -4.0)}
    write(
        run / "texts.jsonl",
        [
            {"step": step, "name": name, "are_answers": are_answers, "logprob": logprob - (step == 0)}
            for step in (0, 3)
            for name, (are_answers, logprob) in texts.items()
        ],
    )
    found = measure_run(read_run(run), checkpoint_rule="last", early_steps=2, num_rollouts=8)
    expected = {**read, "repeated_4grams": 0.2, "stopped": 0.75, "answers_logprob": -1.5, "text_logprob": -4.0}
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert found.keys() <= MEASURES.keys(), "one set needs no column of its own"
    assert measure_named("reverse_kl/other kinds").title == "KL other kinds"


def test_what_was_not_measured_is_left_out(run: Path) -> None:
    (run / "evaluations.jsonl").unlink()
    write(run / "metrics.jsonl", [{"step": 0, "seconds": 1.0, "response_tokens_total": 10.0}])
    found = measure_run(read_run(run), checkpoint_rule="best", early_steps=2, num_rollouts=8)
    assert set(found) == {"seconds", "response_tokens", "teacher_forwards", "tokens_per_teacher_forward"}


def test_differences_are_paired_by_seed() -> None:
    values = {
        "opd": {0: {"area": 0.1}, 1: {"area": 0.2}, 2: {"area": 0.3}},
        "trb": {0: {"area": 0.2}, 1: {"area": 0.3}, 7: {"area": 0.9}},
        "skd": {2: {"area": 0.5}},
        "none": {},
    }
    found = summarise_methods(values)
    assert found["opd"]["area"].difference is None and found["opd"]["area"].spread == pytest.approx(0.1)
    trb, skd = found["trb"]["area"], found["skd"]["area"]
    assert (trb.num_seeds, trb.num_pairs, trb.difference) == (3, 2, pytest.approx(0.1))
    assert trb.interval == pytest.approx((0.1, 0.1)), "both pairs differ by as much; the seeds' own spread cancels"
    assert (skd.spread, skd.num_pairs, skd.interval) == (None, 1, None) and skd.difference == pytest.approx(0.2)
    assert found["none"] == {}
