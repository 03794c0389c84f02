"""The tables of a report: what each method reached, what differs between runs, which problems were gained and lost."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.errors import DataError, in_short
from tutelage.report.lines import sound_objects
from tutelage.report.plain import shortened
from tutelage.report.records import MAX_MAGNITUDE, Curve, curve, pass_at_1_curve
from tutelage.report.sources import (
    COMPARISON_FILE,
    Comparison,
    ReportedRun,
    grouped,
    is_finished,
    settled,
    steps_done,
)

__all__ = [
    "SOLVED_SHARE",
    "Cell",
    "Change",
    "Table",
    "compared",
    "configuration_differences",
    "problem_changes",
    "run_table",
    "summary",
]

EVALUATION_SAMPLES = re.compile(r"step-(\d{1,15})-(.+)\.jsonl")
SOLVED_SHARE = 0.5  # of a problem's answers; a problem counts as solved from there on
MAX_PROBLEMS_LISTED = 60
MAX_SETTINGS = 8  # that differ, each a column of the table of runs
MAX_LOOKS = 9  # of an evaluation set, between which problems are gained and lost


Cell = tuple[str, float | str]  # text, what it is sorted by


@dataclass(frozen=True)
class Table:
    """Headings and rows of text, as a page shows, sorts and filters them."""

    name: str
    headings: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Change:
    """Problems that one run solved at one checkpoint and not at the other.

    Fields:
      gained, lost: (problem id, right answers before, after, number of answers), the largest change first.
    """

    label: str
    problems: str
    before: int
    after: int
    gained: Sequence[tuple[str, int, int, int]]
    lost: Sequence[tuple[str, int, int, int]]


def summary(runs: Sequence[ReportedRun]) -> Table:
    """A row per method: means over its finished runs, if any, ± standard deviation (n - 1)."""
    rows: list[list[Cell]] = []
    for method, group in settled(runs).items():
        looks = [pass_at_1_curve(run.records.evaluations) for run in group]
        rewards = [curve(run.records.metrics, "reward") for run in group]
        seconds = [curve(run.records.metrics, "seconds") for run in group]
        steps = [len(curve(run.records.metrics, "loss")) for run in group]
        rows.append(
            [
                (method, method),
                (f"{len(group)}", len(group)),
                (_range_words(steps), float(max(steps))),
                _cell([100 * line.values[0] for line in looks if len(line)], ".1f"),
                _cell([100 * line.values[-1] for line in looks if len(line)], ".1f"),
                _cell([100 * line.values.max() for line in looks if len(line)], ".1f"),
                _cell([100 * _first_tenth(line) for line in rewards if len(line)], ".1f"),
                _cell([float(np.median(line.values)) for line in seconds if len(line)], ".2f"),
                _cell([float(line.values.sum()) for line in seconds if len(line)], ".0f"),
            ]
        )
    headings = ("method", "runs", "steps", "pass@1 % first", "last", "best", "early reward %", "s / step", "s in all")
    notes = (
        "Means over runs ± standard deviation (n − 1). pass@1: mean over the evaluation sets, sampled. Best: the best "
        "of all looks, so too high. Early reward: right training rollouts in the first tenth of the steps. s / step: "
        "median.",
    )
    return Table("summary", headings, rows, notes)


def run_table(runs: Sequence[ReportedRun]) -> Table:
    """A row per run, finished or not: what it has reached, and the settings in which the runs differ."""
    keys = _differing_keys([run.config for run in runs])
    shown = keys[:MAX_SETTINGS]
    rows: list[list[Cell]] = []
    for run in runs:
        looks, rewards = pass_at_1_curve(run.records.evaluations), curve(run.records.metrics, "reward")
        seconds = curve(run.records.metrics, "seconds")
        done, steps = steps_done(run), run.config.get("steps")
        state = "finished" if is_finished(run) else f"step {done} of {steps}"
        rows.append(
            [
                (run.label, run.label),
                (_place_of(run.folder), str(run.folder)),
                (state, state if is_finished(run) else float(done)),
                (f"{done}", float(done)),
                _cell([100 * value for value in looks.values[:1]], ".1f"),
                _cell([100 * value for value in looks.values[-1:]], ".1f"),
                _cell([100 * looks.values.max()] if len(looks) else [], ".1f"),
                _cell([100 * _first_tenth(rewards)] if len(rewards) else [], ".1f"),
                _cell([float(np.median(seconds.values))] if len(seconds) else [], ".2f"),
                _cell([float(seconds.values.sum())] if len(seconds) else [], ".0f"),
                *(_setting_cell(run.config.get(key)) for key in shown),
            ]
        )
    headings = (
        "run", "folder", "state", "steps", "pass@1 % first", "last", "best", "early reward %", "s / step", "s in all",
        *shown,
    )  # fmt: skip
    notes = ["As in the numbers by method, of each run; after them the settings in which the runs differ."]
    if len(keys) > len(shown):
        notes.append(f"{len(keys) - len(shown)} further settings differ, from {keys[len(shown)]} on.")
    return Table("runs", headings, rows, notes)


def compared(comparison: Comparison) -> Table | None:
    """The numbers that a comparison wrote, shares as they are; below a mean the paired difference and its interval.

    Raises:
      DataError: they are not where a comparison writes them.
    """
    try:
        return _compared(comparison)
    except (AttributeError, KeyError, TypeError, ValueError) as problem:
        raise DataError(
            f"{comparison.folder / COMPARISON_FILE} is not what a comparison writes ({in_short(problem)}). Delete it; "
            "tutelage compare with --resume writes it again."
        ) from problem


def _compared(comparison: Comparison) -> Table | None:
    record = comparison.record
    summaries: Mapping[str, Mapping[str, Any]] = record.get("summaries", {})
    names = [name for name in record.get("measures", {}) if any(name in own for own in summaries.values())]
    if not names:
        return None
    rows = [
        [(method, method), *(_summary_cell(own.get(name)) for name in names)]
        for method, own in summaries.items()
        if own
    ]
    notes = [f"{name.replace('_', ' ')}: {record['measures'][name]}" for name in names]
    headings = ("method", *(name.replace("_", " ") for name in names))
    return Table(f"comparison-{comparison.folder.name}", headings, rows, [*map(str, record.get("notes", [])), *notes])


def configuration_differences(runs: Sequence[ReportedRun]) -> Table | None:
    """Keys in which methods differ, a column per method; outputs, names and seeds aside. None without a difference."""
    configs = {method: group[0].config for method, group in grouped(runs).items()}
    rows = []
    for key in _differing_keys(list(configs.values())):
        if key != "seed":
            values = [_shown(config.get(key)) for config in configs.values()]
            rows.append([(key, key), *((value, value) for value in values)])
    return Table("configuration", ("key", *configs), rows) if rows else None


def problem_changes(run: ReportedRun, left_out: list[str]) -> list[Change]:
    """Problems gained and lost between neighbouring evaluations of a run, and from the first to the last.

    Of more than 9 evaluations 9 are taken, evenly, the first and the last among them. A problem is solved where at
    least half of its answers are right. Answers are drawn, so some problems come and go by chance; compare the two
    counts.

    Args:
      left_out: gets a sentence about lines that cannot be read.
    """
    files: dict[str, dict[int, Path]] = {}
    folder = run.folder / "evaluations"
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.is_file() and (match := EVALUATION_SAMPLES.fullmatch(path.name)):
            files.setdefault(match[2], {})[int(match[1])] = path
    changes = []
    for name, of_step in files.items():
        looks = sorted(of_step)
        places = np.unique(np.linspace(0, len(looks) - 1, min(MAX_LOOKS, len(looks))).round().astype(int))
        right = {looks[place]: _right_answers(of_step[looks[place]], left_out) for place in places}
        steps = list(right)
        pairs = list(pairwise(steps))
        if len(steps) > 2:
            pairs.append((steps[0], steps[-1]))
        changes += [_change(run.label, name, before, after, right) for before, after in pairs]
    return changes


def _right_answers(path: Path, left_out: list[str]) -> dict[str, tuple[int, int]]:
    """Problem id -> right answers, answers."""
    counts: dict[str, tuple[int, int]] = {}
    for record in sound_objects(path, left_out):
        problem = shortened(str(record.get("problem_id")))
        right, number = counts.get(problem, (0, 0))
        counts[problem] = (right + bool(record.get("correct")), number + 1)
    return counts


def _change(
    label: str, name: str, before: int, after: int, right: Mapping[int, Mapping[str, tuple[int, int]]]
) -> Change:
    gained: list[tuple[str, int, int, int]] = []
    lost: list[tuple[str, int, int, int]] = []
    for problem, (old, number) in right[before].items():
        if problem not in right[after]:
            continue
        new, new_number = right[after][problem]
        was, is_now = old >= SOLVED_SHARE * number, new >= SOLVED_SHARE * new_number
        if was != is_now:
            (gained if is_now else lost).append((problem, old, new, new_number))
    for changed in (gained, lost):
        changed.sort(key=lambda row: -abs(row[2] - row[1]))
    return Change(label, name, before, after, gained, lost)


def _cell(values: Sequence[float], form: str) -> Cell:
    if not values:
        return "–", float("-inf")
    mean = float(np.mean(values))
    spread = f" ± {np.std(values, ddof=1):{form}}" if len(values) > 1 else ""
    return f"{mean:{form}}{spread}", mean


def _differing_keys(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys with several values, names and outputs aside, in the order of the configurations."""
    keys = dict.fromkeys(key for config in configs for key in config if key not in ("name", "output"))
    return [key for key in keys if len({_shown(config.get(key)) for config in configs}) > 1]


def _setting_cell(value: Any) -> Cell:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return _shown(value), float(value) if is_number and abs(value) < MAX_MAGNITUDE else _shown(value)


def _place_of(folder: Path) -> str:
    """The end of a path, by which a person knows it."""
    return "/".join(folder.parts[-2:])


def _summary_cell(own: Mapping[str, Any] | None) -> Cell:
    if own is None:
        return "–", float("-inf")
    mean, spread = float(own["mean"]), own.get("spread")
    text = _number(mean) + (f" ± {_number(float(spread))}" if spread is not None else "")
    if own.get("difference") is not None:
        text += f"\n{_number(float(own['difference']), '+')}"
    if own.get("interval"):
        text += "\n[{}]".format(", ".join(_number(float(end), "+") for end in own["interval"]))
    return text, mean


def _number(value: float, sign: str = "") -> str:
    digits = 0 if abs(value) >= 1000 else 1 if abs(value) >= 10 else 3
    return f"{round(value, digits) + 0.0:{sign},.{digits}f}"  # + 0.0: a number that rounds to 0 has no sign


def _first_tenth(line: Curve) -> float:
    return float(line.values[: max(1, len(line) // 10)].mean())


def _range_words(counts: Sequence[int]) -> str:
    return f"{counts[0]}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"


def _shown(value: Any) -> str:
    return "–" if value is None else shortened(str(value))
