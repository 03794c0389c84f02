"""Training answers side by side: what several runs sampled for the same prompt at the same step, token by token.

`samples.jsonl` may be long, so only the places of its lines are kept, and the lines that are shown are read afterwards.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.report.lines import MAX_LINE_BYTES, is_torn, lines_of, object_in
from tutelage.report.plain import shortened
from tutelage.report.records import number_of
from tutelage.report.sources import ReportedRun, grouped

__all__ = ["side_by_side"]

MAX_RUNS = 4
MAX_STEPS = 8
MAX_ANSWERS = 4
MAX_BYTES = 1_200_000
MAX_LETTERS = 20_000  # of a prompt, and of an answer
MAX_TOKENS, MAX_TOKEN_LETTERS = 1_000, 200
MAX_NUMBER = 2**31
TOKEN_NUMBERS = ("student_logprob", "teacher_logprob", "teacher_entropy", "kl", "blend", "replaced")
# How a line begins that we wrote ourselves: its step is known without reading the rest of it.
STEP = re.compile(rb'\{"step": (\d{1,15}), ')

Key = tuple[int, int, int]  # step, prompt number, sample


def side_by_side(runs: Sequence[ReportedRun], left_out: list[str]) -> dict[str, Any]:
    """`{"runs": labels, "views": [{"step", "prompt_number", "sample", "prompt", "answers": [one or None per run]}]}`.

    The first seed of each method, evenly chosen steps that all of these runs logged (or any, where none is common), the
    first answers of each. Every other view goes where the whole would pass 1.2 MB.

    Args:
      left_out: gets a sentence about lines that are no answers.
    """
    chosen = [group[0] for group in grouped(runs).values()]
    logged = [(run, found) for run in chosen if len((found := _places(run.folder / "samples.jsonl"))[0])][:MAX_RUNS]
    if not logged:
        return {"runs": [], "views": []}
    own_steps = [np.unique(steps) for _, (steps, _) in logged]
    steps = own_steps[0]
    for other in own_steps[1:]:
        steps = np.intersect1d(steps, other)
    if not len(steps):
        steps = np.unique(np.concatenate(own_steps))
    places = np.unique(np.linspace(0, len(steps) - 1, min(MAX_STEPS, len(steps))).round().astype(int))
    views: list[dict[str, Any]] = []
    answers = [_answers_at(run.folder / "samples.jsonl", found, steps[places], left_out) for run, found in logged]
    for step in steps[places].tolist():
        keys = dict.fromkeys(key for found in answers for key in found if key[0] == step)
        # first the answers that most runs have; runs with different orders of prompts share few
        shared = sorted(keys, key=lambda key: -sum(key in found for found in answers))
        views += [_view(key, answers) for key in shared[:MAX_ANSWERS]]
    while len(views) > 1 and len(json.dumps(views)) > MAX_BYTES:
        views = views[::2]
    return {"runs": [run.label for run, _ in logged], "views": views}


def _places(path: Path) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The step of every line that has one, and where the line starts."""
    steps, starts = array("q"), array("q")
    for _, start, line in lines_of(path) if path.is_file() else ():
        match = STEP.match(line)
        step = int(match[1]) if match else _step_of(line)
        if step is not None:
            steps.append(step)
            starts.append(start)
    return np.array(steps, np.int64), np.array(starts, np.int64)


def _step_of(line: bytes) -> int | None:
    try:
        return _whole(object_in(line).get("step"))
    except ValueError:
        return None


def _answers_at(
    path: Path, places: tuple[NDArray[np.int64], NDArray[np.int64]], wanted: NDArray[np.int64], left_out: list[str]
) -> dict[Key, dict[str, Any]]:
    """Key -> answer, of the steps that are shown; of two with one key the later, as a resumed run may leave them."""
    steps, starts = places
    found: dict[Key, dict[str, Any]] = {}
    num_broken = 0
    with path.open("rb") as file:
        for start in starts[np.isin(steps, wanted)].tolist():
            file.seek(start)
            line = file.readline(MAX_LINE_BYTES)
            try:
                record = object_in(line)
                found[_key(record)] = _sound(record)
            except ValueError:
                num_broken += not is_torn(line)
    if num_broken:
        left_out.append(f"{path}: {num_broken} of the rollouts to be shown cannot be read.")
    return found


def _key(record: Mapping[str, Any]) -> Key:
    step, number, sample = (_whole(record.get(name)) for name in ("step", "prompt_number", "sample"))
    if step is None or number is None or sample is None:
        raise ValueError("a rollout without its step, prompt or sample")
    return step, number, sample


def _whole(value: Any) -> int | None:
    number = number_of(value)
    return int(number) if 0 <= number < MAX_NUMBER else None


def _sound(record: Mapping[str, Any]) -> dict[str, Any]:
    """What the page shows of a rollout, each field of the kind that its script expects."""
    prompt, response, answer = (record.get(name) for name in ("prompt", "response", "answer"))
    if not isinstance(prompt, str) or not isinstance(response, str):
        raise ValueError("a rollout without texts")
    found: dict[str, Any] = {
        "prompt": shortened(prompt, MAX_LETTERS),
        "response": shortened(response, MAX_LETTERS),
        "answer": None if answer is None else shortened(str(answer)),
        "finished": bool(record.get("finished")),
    }
    if record.get("correct") is not None:
        found["correct"] = bool(record["correct"])
    tokens = record.get("tokens")
    pieces = tokens.get("text") if isinstance(tokens, dict) else None
    if isinstance(pieces, list) and all(isinstance(piece, str) for piece in pieces):
        found["tokens"] = {
            "text": [shortened(piece, MAX_TOKEN_LETTERS) for piece in pieces[:MAX_TOKENS]],
            **_token_numbers(tokens, len(pieces)),
        }
    return found


def _token_numbers(tokens: Any, num_pieces: int) -> dict[str, list[float]]:
    columns = {name: tokens.get(name) for name in TOKEN_NUMBERS}
    return {
        name: [number_of(value) for value in values[:MAX_TOKENS]]
        for name, values in columns.items()
        if isinstance(values, list) and len(values) == num_pieces
    }


def _view(key: Key, answers: Sequence[Mapping[Key, dict[str, Any]]]) -> dict[str, Any]:
    records = [found.get(key) for found in answers]
    step, number, sample = key
    return {
        "step": step,
        "prompt_number": number,
        "sample": sample,
        "prompt": next(record["prompt"] for record in records if record is not None),
        "answers": [
            None if record is None else {name: value for name, value in record.items() if name != "prompt"}
            for record in records
        ],
    }
