"""Training answers side by side: what several runs sampled for the same prompt at the same step, token by token."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tutelage.report.records import read_jsonl
from tutelage.report.sources import ReportedRun, grouped

__all__ = ["side_by_side"]

MOST_RUNS = 4
MOST_STEPS = 8
MOST_ANSWERS = 4
MOST_BYTES = 1_200_000
COPIED = ("response", "answer", "correct", "finished", "tokens")

Key = tuple[int, int, int]  # step, prompt number, sample


def side_by_side(runs: Sequence[ReportedRun]) -> dict[str, Any]:
    """`{"runs": labels, "views": [{"step", "prompt_number", "sample", "prompt", "answers": [one or None per run]}]}`.

    The first seed of each method, evenly chosen steps that all of these runs logged (or any, where none is common), the
    first answers of each. Every other view goes where the whole would pass 1.2 MB.
    """
    chosen = [group[0] for group in grouped(runs).values()]
    logged = [(run, found) for run in chosen if (found := _samples(run))][:MOST_RUNS]
    if not logged:
        return {"runs": [], "views": []}
    common = set.intersection(*({key[0] for key in found} for _, found in logged))
    steps = sorted(common or {key[0] for _, found in logged for key in found})
    places = np.unique(np.linspace(0, len(steps) - 1, min(MOST_STEPS, len(steps))).round().astype(int))
    views: list[dict[str, Any]] = []
    for step in [steps[place] for place in places]:
        keys = dict.fromkeys(key for _, found in logged for key in found if key[0] == step)
        # answers that most runs have come first; runs whose order of prompts differs share few
        shared = sorted(keys, key=lambda key: -sum(key in found for _, found in logged))
        views += [_view(key, logged) for key in shared[:MOST_ANSWERS]]
    while len(views) > 1 and len(json.dumps(views)) > MOST_BYTES:
        views = views[::2]
    return {"runs": [run.label for run, _ in logged], "views": views}


def _samples(run: ReportedRun) -> dict[Key, dict[str, Any]]:
    path = run.folder / "samples.jsonl"
    if not path.is_file() or not path.stat().st_size:
        return {}
    return {(record["step"], record["prompt_number"], record["sample"]): record for record in read_jsonl(path)}


def _view(key: Key, logged: Sequence[tuple[ReportedRun, Mapping[Key, dict[str, Any]]]]) -> dict[str, Any]:
    records = [found.get(key) for _, found in logged]
    step, number, sample = key
    return {
        "step": step,
        "prompt_number": number,
        "sample": sample,
        "prompt": next(record["prompt"] for record in records if record is not None),
        "answers": [
            None if record is None else {name: record[name] for name in COPIED if name in record} for record in records
        ],
    }
