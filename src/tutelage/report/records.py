"""What a run left on disk, read back: columns of numbers, and the curves in them. Nothing here draws or writes.

A run may have a million lines, so of each only the numbers are kept that a report or a comparison asks for.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.report.lines import strict_objects

__all__ = [
    "GREEDY_SUFFIX",
    "METRICS",
    "MULTIPLIER_PREFIX",
    "REWARD_PREFIX",
    "Columns",
    "Curve",
    "RunRecords",
    "columns_of",
    "curve",
    "evaluation_curve",
    "evaluations_of",
    "greedy_names",
    "mean_and_spread",
    "number_of",
    "on_common_steps",
    "pass_at_1_curve",
    "read_run",
]

METRICS_FILE = "metrics.jsonl"
EVALUATIONS_FILE = "evaluations.jsonl"
TEXTS_FILE = "texts.jsonl"
GREEDY_SUFFIX = "-greedy"  # a run files greedy answers to a set under the set's name and this
METRICS = (
    "loss", "reward", "teacher_logprob", "teacher_entropy", "response_tokens", "kl_radius", "blend_mean", "kl_used",
    "seconds_rollout", "seconds_score", "seconds_verify", "seconds_update", "seconds",
    "response_tokens_total", "tokens_per_teacher_forward",
    "zero_spread_share", "clip_share_high", "clip_share_low", "student_entropy", "sampled_reverse_kl",
    "sampled_reference_kl", "processor_seconds",
)  # fmt: skip
"""What is kept of a line of metrics, beside its step, its phase, and the mean and multiplier of each reward."""
EVALUATED = (
    "pass_at_1", "reverse_kl", "teacher_logprob", "support_overlap", "student_entropy", "repeated_4grams",
    "truncation_rate",
)  # fmt: skip
"""What is kept of a line of evaluations, beside its step and the ends of the interval of pass@1."""
REWARD_PREFIX, MULTIPLIER_PREFIX = "reward/", "reward_multiplier/"
MAX_REWARDS = 8  # whose means and multipliers are kept
# Bound on a number that is drawn or averaged: beyond it sums and axes overflow, and no healthy run has such numbers.
MAX_MAGNITUDE = 1e30
MAX_STEP = 2.0**53

Numbers = NDArray[np.float64]
NAN = math.nan


@dataclass(frozen=True)
class Curve:
    """A number against the step: steps increasing, values finite, one each; possibly none."""

    steps: Numbers
    values: Numbers

    def __len__(self) -> int:
        return len(self.steps)


@dataclass(frozen=True)
class Columns:
    """Numbers of the lines of a file, one line per step, steps increasing.

    Fields:
      values: key -> a number per line, NaN where the line has no finite one.
    """

    steps: Numbers
    values: Mapping[str, Numbers]

    def __len__(self) -> int:
        return len(self.steps)

    def keys_with(self, prefix: str) -> list[str]:
        """The keys of a number of single rewards."""
        return [key for key in self.values if key.startswith(prefix)]

    def __getitem__(self, key: str) -> Numbers:
        return self.values[key] if key in self.values else np.full(len(self), NAN)


@dataclass(frozen=True)
class RunRecords:
    """The lines of one run.

    Fields:
      metrics: of each optimiser step; `phase` is a number for each name.
      evaluations: set -> its lines, the ends of the interval as `pass_at_1_low` and `pass_at_1_high`.
      texts: set of given texts -> its lines; `are_answers` is 1 or 0.
      left_out: a sentence about each key whose value is something else than a number or null somewhere.
    """

    metrics: Columns
    evaluations: Mapping[str, Columns]
    left_out: Sequence[str] = ()
    texts: Mapping[str, Columns] = field(default_factory=dict)


def read_run(folder: Path) -> RunRecords:
    """The records of a run folder. It must have metrics; a run that was never evaluated has no evaluations file.

    Raises:
      DataError: a file is missing or has a line that is no JSON object.
    """
    wrong: dict[str, int] = {}
    lines = strict_objects(folder / METRICS_FILE)
    first = next(lines)  # a run has the same rewards at every step
    of_rewards = [
        key
        for prefix in (REWARD_PREFIX, MULTIPLIER_PREFIX)
        for key in [key for key in first if key.startswith(prefix)][:MAX_REWARDS]
    ]
    metrics = columns_of(chain([first], lines), wrong, [*METRICS, *of_rewards])
    evaluations_path = folder / EVALUATIONS_FILE
    evaluations = evaluations_of(strict_objects(evaluations_path), wrong) if evaluations_path.is_file() else {}
    texts = _texts_of(strict_objects(folder / TEXTS_FILE), wrong) if (folder / TEXTS_FILE).is_file() else {}
    left_out = [
        f"{folder}: {count:,} line{'s' * (count > 1)} without a number as {key}, not in its curve."
        for key, count in wrong.items()
    ]
    return RunRecords(metrics, evaluations, left_out, texts)


def columns_of(
    records: Iterable[Mapping[str, Any]], wrong: dict[str, int] | None = None, keys: Sequence[str] = METRICS
) -> Columns:
    """Records -> columns. Those without a step are left out; of two with one step, as a resumed run may leave them, the
    later counts.

    Args:
      wrong: gets the number of records in which a key has something else than a number or null.
    """
    wrong = {} if wrong is None else wrong
    steps, phases = array("d"), array("d")
    columns = [(key, array("d")) for key in keys]
    adders = [(key, column.append) for key, column in columns]
    phase_numbers: dict[str, int] = {}
    for record in records:
        step = number_of(record.get("step"))
        if not 0 <= step <= MAX_STEP:  # which NaN is not
            wrong["step"] = wrong.get("step", 0) + 1
            continue
        steps.append(step)
        phases.append(phase_numbers.setdefault(str(record.get("phase")), len(phase_numbers)))
        for key, add in adders:
            value = record.get(key)
            add(NAN if value is None else number_of(value, key, wrong))
    found = {key: np.frombuffer(column, np.float64) for key, column in [*columns, ("phase", phases)] if len(column)}
    return _later_lines(np.frombuffer(steps, np.float64) if steps else np.zeros(0), found)


def number_of(value: Any, key: str = "", wrong: dict[str, int] | None = None) -> float:
    """The number that a JSON value is; NaN for any other value, and for one not finite or beyond `MAX_MAGNITUDE`."""
    if value.__class__ is float and -MAX_MAGNITUDE < value < MAX_MAGNITUDE:
        return value
    if value.__class__ is int and -MAX_MAGNITUDE < value < MAX_MAGNITUDE:
        return float(value)
    if wrong is not None and value is not None and value.__class__ not in (float, int):
        wrong[key] = wrong.get(key, 0) + 1
    return NAN


def evaluations_of(records: Iterable[Mapping[str, Any]], wrong: dict[str, int] | None = None) -> dict[str, Columns]:
    """Set -> its evaluations, in order of first appearance."""
    lines: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        interval = record.get("pass_at_1_interval")
        low, high = interval if isinstance(interval, list) and len(interval) == 2 else (None, None)
        kept = {key: record.get(key) for key in ("step", *EVALUATED)}
        lines.setdefault(str(record.get("name", "")), []).append(
            kept | {"pass_at_1_low": low, "pass_at_1_high": high},
        )
    keys = (*EVALUATED, "pass_at_1_low", "pass_at_1_high")
    return {name: columns_of(own, wrong, keys) for name, own in lines.items()}


def _texts_of(records: Iterable[Mapping[str, Any]], wrong: dict[str, int]) -> dict[str, Columns]:
    lines: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        kept = {**record, "are_answers": int(record.get("are_answers") is True)}
        lines.setdefault(str(record.get("name", "")), []).append(kept)
    return {name: columns_of(own, wrong, ("logprob", "are_answers")) for name, own in lines.items()}


def curve(columns: Columns, key: str) -> Curve:
    """One key against the step, where it has a finite number."""
    values = columns[key]
    there = np.isfinite(values)
    return Curve(columns.steps[there], values[there])


def on_common_steps(curves: Sequence[Curve]) -> list[Curve]:
    """The curves on the steps that all of at least one of them have."""
    steps = curves[0].steps
    for line in curves[1:]:
        if not np.array_equal(line.steps, steps):
            steps = np.intersect1d(steps, line.steps)
    return [
        line if len(line) == len(steps) else Curve(steps, line.values[np.searchsorted(line.steps, steps)])
        for line in curves
    ]


def mean_and_spread(curves: Sequence[Curve]) -> tuple[Curve, Numbers]:
    """Mean and standard deviation (n - 1; 0 for one curve) on the steps that all of at least one curve have."""
    common = on_common_steps(curves)
    rows = np.array([line.values for line in common])
    spread = rows.std(axis=0, ddof=1) if len(rows) > 1 else np.zeros(rows.shape[1])
    return Curve(common[0].steps, rows.mean(axis=0)), spread


def greedy_names(evaluations: Iterable[str]) -> set[str]:
    """Names of sets under which greedy answers to another set are filed."""
    names = set(evaluations)
    return {name for name in names if name.removesuffix(GREEDY_SUFFIX) in names - {name}}


def pass_at_1_curve(evaluations: Mapping[str, Columns], *, is_greedy: bool = False) -> Curve:
    """pass@1 against the step: the mean over the sets, sampled or greedy, where all of them were evaluated."""
    return evaluation_curve(evaluations, "pass_at_1", is_greedy=is_greedy)


def evaluation_curve(evaluations: Mapping[str, Columns], key: str, *, is_greedy: bool = False) -> Curve:
    """A number against the step: the mean over the sets, sampled or greedy, where all of them have it."""
    greedy = greedy_names(evaluations)
    names = greedy if is_greedy else set(evaluations) - greedy
    curves = [curve(evaluations[name], key) for name in evaluations if name in names]
    return mean_and_spread(curves)[0] if curves else Curve(np.zeros(0), np.zeros(0))


def _later_lines(steps: Numbers, values: Mapping[str, Numbers]) -> Columns:
    """Columns in the order of steps, of equal steps the later line."""
    if not (np.diff(steps) > 0).all():
        order = np.argsort(steps, kind="stable")
        is_last = np.append(np.diff(steps[order]) > 0, True)
        kept = order[is_last]
        steps, values = steps[kept], {key: column[kept] for key, column in values.items()}
    return Columns(steps, values)
