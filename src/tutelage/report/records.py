"""What a run left on disk, read back: JSON lines, and the curves in them. Nothing here draws or writes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import DataError

__all__ = [
    "GREEDY_SUFFIX",
    "Curve",
    "RunRecords",
    "curve",
    "greedy_names",
    "mean_and_spread",
    "pass_at_1_curve",
    "read_jsonl",
    "read_run",
]

METRICS_FILE = "metrics.jsonl"
EVALUATIONS_FILE = "evaluations.jsonl"
GREEDY_SUFFIX = "-greedy"  # a run files greedy answers to a set under the set's name and this


@dataclass(frozen=True)
class Curve:
    """A number against the step: steps increasing, values finite, one each; possibly none."""

    steps: NDArray[np.float64]
    values: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.steps)


@dataclass(frozen=True)
class RunRecords:
    """The lines of one run, in the order they were written.

    Fields:
      metrics: one object per optimiser step; keys may differ from step to step.
      evaluations: one object per evaluation, the ends of its interval also as `pass_at_1_low` and `pass_at_1_high`; may
        be empty.
    """

    metrics: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; a last line torn by a killed process is left out.

    A broken line anywhere else, a line that is no object, and a file without a whole line are refused.
    """
    if not path.is_file():
        raise DataError(
            f"{path} does not exist; expected a JSON-lines file. Point to the folder of a run that has begun."
        )
    lines = path.read_bytes().split(b"\n")
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:  # broken JSON, or UTF-8 cut inside a character
            if number == len(lines):  # no line end behind it: still being written when the process died
                break
            raise DataError(f"{path}, line {number} is not JSON ({error}). Mend or delete that line.") from error
        if not isinstance(record, dict):
            raise DataError(
                f"{path}, line {number} is {line[:40]!r}; expected a JSON object. Mend or delete that line."
            )
        records.append(record)
    if not records:
        raise DataError(
            f"{path} has no complete line; expected one JSON object per line. Let the run finish a step first."
        )
    return records


def read_run(folder: Path) -> RunRecords:
    """The records of a run folder. It must have metrics; a run that was never evaluated has no evaluations file."""
    evaluations_path = folder / EVALUATIONS_FILE
    evaluations = read_jsonl(evaluations_path) if evaluations_path.is_file() else []
    return RunRecords(
        metrics=read_jsonl(folder / METRICS_FILE),
        evaluations=[record | _interval_ends(record) for record in evaluations],
    )


def curve(records: Iterable[Mapping[str, Any]], key: str) -> Curve:
    """One key against the step. Records without a finite number there are skipped.

    A resumed run may have written a step twice; the later record counts.
    """
    value_of_step: dict[float, float] = {}
    for record in records:
        step, value = record.get("step"), record.get(key)
        if _is_finite_number(step) and _is_finite_number(value):
            value_of_step[float(step)] = float(value)
    steps = sorted(value_of_step)
    return Curve(np.array(steps), np.array([value_of_step[step] for step in steps]))


def mean_and_spread(curves: Sequence[Curve]) -> tuple[Curve, NDArray[np.float64]]:
    """Mean and standard deviation (n - 1; 0 for one curve) on the steps that all of at least one curve have."""
    steps = curves[0].steps
    for line in curves[1:]:
        steps = np.intersect1d(steps, line.steps)
    rows = np.array([line.values[np.searchsorted(line.steps, steps)] for line in curves])
    spread = rows.std(axis=0, ddof=1) if len(rows) > 1 else np.zeros(len(steps))
    return Curve(steps, rows.mean(axis=0)), spread


def greedy_names(evaluations: Iterable[Mapping[str, Any]]) -> set[str]:
    """Names under which greedy answers to another set are filed."""
    names = {str(record.get("name", "")) for record in evaluations}
    return {name for name in names if name.removesuffix(GREEDY_SUFFIX) in names - {name}}


def pass_at_1_curve(evaluations: Sequence[Mapping[str, Any]], *, is_greedy: bool = False) -> Curve:
    """pass@1 against the step: the mean over the sets, sampled or greedy, where all of them were evaluated."""
    greedy = greedy_names(evaluations)
    names = greedy if is_greedy else {str(record.get("name", "")) for record in evaluations} - greedy
    curves = [curve([record for record in evaluations if record.get("name") == name], "pass_at_1") for name in names]
    return mean_and_spread(curves)[0] if curves else Curve(np.zeros(0), np.zeros(0))


def _interval_ends(record: Mapping[str, Any]) -> dict[str, Any]:
    interval = record.get("pass_at_1_interval")
    if not isinstance(interval, list) or len(interval) != 2:
        return {}
    return {"pass_at_1_low": interval[0], "pass_at_1_high": interval[1]}


def _is_finite_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)
