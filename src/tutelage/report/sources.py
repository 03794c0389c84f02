"""Which runs are in a report?  Those of run folders, comparisons, sweeps, and folders that hold any of these."""

from __future__ import annotations

import json
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
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
MAX_DEPTH = 4  # of folders in each other, in which runs are looked for


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


def read_sources(
    paths: Sequence[Path], left_out: list[str] | None = None
) -> tuple[list[ReportedRun], list[Comparison]]:
    """The runs in the folders named, in order; those of a comparison that have not begun are left out.

    Runs that are named one by one, or lie in a folder that is named, belong together where their configurations differ
    in seed and output only.

    Args:
      left_out: gets a sentence about each run or comparison in a folder of such that cannot be read.
    Raises:
      DataError: a folder holds none of them, what is named itself cannot be read, or nothing has begun.
    """
    runs: list[ReportedRun] = []
    comparisons: list[Comparison] = []
    single: dict[Path, bool] = {}  # folder of a run -> it was named
    left_out = [] if left_out is None else left_out
    for path in paths:
        found = [path] if _is_source(path) else list(_sources_in(path, MAX_DEPTH))
        if not found:
            raise DataError(
                f"{path} has neither {METRICS_FILE} nor {COMPARISON_FILE}, and no folder in it has; expected the "
                "folder of a run that has begun, of a comparison, or of several of them. Name such a folder."
            )
        for each in found:
            if not _is_comparison(each):
                single[each.resolve()] = single.get(each.resolve(), False) or each == path
                continue
            try:
                comparison, own = _read_comparison(each)
            except DataError as problem:
                if each == path:
                    raise
                left_out.append(str(problem))
            else:
                comparisons.append(comparison)
                runs += own
    runs += _read_single(single, {run.method for run in runs}, left_out)
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


def _is_comparison(path: Path) -> bool:
    return (path / PLAN_FILE).is_file() or (path / COMPARISON_FILE).is_file()


def _is_source(path: Path) -> bool:
    return _is_comparison(path) or (path / METRICS_FILE).is_file()


def _sources_in(folder: Path, depth: int) -> Iterator[Path]:
    """Folders of runs and comparisons in a folder, not those inside one another."""
    for path in sorted(_folders(folder)):
        if path.name.startswith(".") or path.is_symlink():
            continue
        if _is_source(path):
            yield path
        elif depth > 1:
            yield from _sources_in(path, depth - 1)


def _read_single(single: Mapping[Path, bool], taken: set[str], left_out: list[str]) -> list[ReportedRun]:
    opened: list[tuple[Path, dict[str, Any], RunRecords]] = []
    for folder, is_named in single.items():
        try:
            opened.append((folder, _config_of(folder), read_run(folder)))
        except DataError as problem:
            if is_named:
                raise
            left_out.append(str(problem))
    folders, configs = [folder for folder, _, _ in opened], [config for _, config, _ in opened]
    recipes = [{key: x for key, x in config.items() if key not in NOT_OF_THE_METHOD} for config in configs]
    groups = [recipes.index(recipe) if recipe else place for place, recipe in enumerate(recipes)]
    names = {
        place: shortened(str(configs[place].get("name", folders[place].name)), NAME_LETTERS) for place in set(groups)
    }
    counts = Counter(names.values())
    for place, name in names.items():
        if name in taken or counts[name] > 1:
            names[place] = f"{folders[place].parent.name}/{folders[place].name}"
    runs: list[ReportedRun] = []
    labels: set[str] = set()
    for place, ((folder, config, records), group) in enumerate(zip(opened, groups, strict=True)):
        seed = f", seed {config['seed']}" if groups.count(group) > 1 and "seed" in config else ""
        label = names[group] + seed
        if label in labels:
            label += f" ({place + 1})"
        labels.add(label)
        runs.append(ReportedRun(names[group], label, folder, config, records))
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
