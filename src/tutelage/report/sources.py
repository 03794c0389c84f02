"""Which runs are in a report?  Run folders, and folders of comparisons and sweeps, read as they are."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage.errors import DataError, in_short
from tutelage.report.plain import shortened
from tutelage.report.records import METRICS_FILE, RunRecords, read_run

__all__ = [
    "COMPARISON_FILE",
    "Comparison",
    "ReportedRun",
    "flattened",
    "grouped",
    "is_finished",
    "read_sources",
    "settled",
    "steps_done",
]

COMPARISON_FILE = "comparison.json"
PLAN_FILE = "plan.json"
NOT_OF_THE_METHOD = {"output", "seed"}
NAME_LETTERS = 80


@dataclass(frozen=True)
class ReportedRun:
    """One run folder.

    Fields:
      method: runs of one method are seeds of one another.
      label: names the run on the page.
      config: key with dots -> value, as the run resolved it.
    """

    method: str
    label: str
    folder: Path
    config: Mapping[str, Any]
    records: RunRecords


@dataclass(frozen=True)
class Comparison:
    """What `compare` or `sweep` left: its numbers as written ({} while it runs), and its sweep's figure if any."""

    folder: Path
    record: Mapping[str, Any]
    sweep_figure: Path | None


def read_sources(paths: Sequence[Path]) -> tuple[list[ReportedRun], list[Comparison]]:
    """The runs in the folders named, in order; those of a comparison that have not begun are left out.

    Runs that are named one by one belong together where their configurations differ in seed and output only.

    Raises:
      DataError: a folder is neither, or nothing has begun.
    """
    runs: list[ReportedRun] = []
    comparisons: list[Comparison] = []
    single: list[Path] = []
    for path in paths:
        if (path / PLAN_FILE).is_file() or (path / COMPARISON_FILE).is_file():
            comparison, found = _read_comparison(path)
            comparisons.append(comparison)
            runs += found
        elif (path / METRICS_FILE).is_file():
            single.append(path)
        else:
            raise DataError(
                f"{path} has neither {METRICS_FILE} nor {COMPARISON_FILE}; expected the folder of a run that has "
                "begun, or of a comparison. Name the folder itself."
            )
    runs += _read_single(list(dict.fromkeys(path.resolve() for path in single)), {run.method for run in runs})
    if not runs:
        raise DataError(f"no run in {', '.join(map(str, paths))} has begun. Let one finish a step first.")
    return runs, comparisons


def grouped(runs: Sequence[ReportedRun]) -> dict[str, list[ReportedRun]]:
    """Method -> its runs, in order of first appearance."""
    groups: dict[str, list[ReportedRun]] = {}
    for run in runs:
        groups.setdefault(run.method, []).append(run)
    return groups


def settled(runs: Sequence[ReportedRun]) -> dict[str, list[ReportedRun]]:
    """As `grouped`, without unfinished runs where others of their method are finished: means are over equal runs."""
    return {method: [run for run in group if is_finished(run)] or group for method, group in grouped(runs).items()}


def is_finished(run: ReportedRun) -> bool:
    """All steps are recorded, and the evaluation after the last one where there are any."""
    steps = run.config.get("steps", 0)
    if not isinstance(steps, int):
        return True  # there is no sign of further steps
    looks = run.records.evaluations
    return steps_done(run) >= steps and (not looks or any(steps in look.steps for look in looks.values()))


def steps_done(run: ReportedRun) -> int:
    """How many steps the run has written."""
    steps = run.records.metrics.steps
    return int(steps[-1]) + 1 if len(steps) else 0


def flattened(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables -> keys with dots; lists stay values."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _read_comparison(folder: Path) -> tuple[Comparison, list[ReportedRun]]:
    record = _read_json(folder / COMPARISON_FILE)
    methods = record.get("methods") or _read_json(folder / PLAN_FILE).get("methods", [])
    methods = list(methods) if isinstance(methods, dict) else methods
    if not isinstance(methods, list) or not all(isinstance(name, str) and Path(name).name == name for name in methods):
        raise DataError(
            f"{folder}: its methods are {shortened(repr(methods), NAME_LETTERS)}; expected a list of names of folders. "
            f"Fix or delete {COMPARISON_FILE} or {PLAN_FILE}, or name the runs themselves."
        )
    runs = [
        ReportedRun(method, f"{method}, {run.name}", run, _config_of(run), read_run(run))
        for method in methods
        for run in sorted(_folders(folder / "runs" / method), key=lambda run: (len(run.name), run.name))
        if (run / METRICS_FILE).is_file() and (run / METRICS_FILE).stat().st_size
    ]
    figure = folder / "sweep.png"
    return Comparison(folder, record, figure if figure.is_file() else None), runs


def _read_single(folders: Sequence[Path], taken: set[str]) -> list[ReportedRun]:
    configs = [_config_of(folder) for folder in folders]
    recipes = [{key: x for key, x in config.items() if key not in NOT_OF_THE_METHOD} for config in configs]
    groups = [recipes.index(recipe) if recipe else place for place, recipe in enumerate(recipes)]
    names = {
        place: shortened(str(configs[place].get("name", folders[place].name)), NAME_LETTERS) for place in set(groups)
    }
    for place, name in names.items():
        if name in taken or list(names.values()).count(name) > 1:
            names[place] = f"{folders[place].parent.name}/{folders[place].name}"
    runs: list[ReportedRun] = []
    for place, (folder, config, group) in enumerate(zip(folders, configs, groups, strict=True)):
        seed = f", seed {config['seed']}" if groups.count(group) > 1 and "seed" in config else ""
        label = names[group] + seed
        if any(run.label == label for run in runs):
            label += f" ({place + 1})"
        runs.append(ReportedRun(names[group], label, folder, config, read_run(folder)))
    return runs


def _config_of(folder: Path) -> dict[str, Any]:
    path = folder / "config.toml"
    if not path.is_file():
        return {}
    try:
        return flattened(tomllib.loads(path.read_text(encoding="utf-8-sig")))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not TOML ({in_short(error)}). Fix it, or leave the run out.") from error


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({in_short(error)}). Fix or delete it.") from error
    if not isinstance(record, dict):
        raise DataError(f"{path} holds no JSON object. Fix or delete it.")
    return record


def _folders(path: Path) -> list[Path]:
    return [entry for entry in path.iterdir() if entry.is_dir()] if path.is_dir() else []
