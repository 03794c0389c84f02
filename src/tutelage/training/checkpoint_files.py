"""What a checkpoint's own files hold, read with care: each may be damaged, or changed since it was written.

Weights are read by `models`, as those of any model folder are. Nothing that is read here can run code.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from tutelage.errors import CheckpointError, in_short
from tutelage.files import sha256_of
from tutelage.models import Reference, is_all_finite
from tutelage.models.finite import tensors_in
from tutelage.models.trainables.adapter_folder import BASE
from tutelage.rewards import Rating
from tutelage.training.updates import Update

__all__ = [
    "TrainerState",
    "check_read_back",
    "damage_of",
    "fingerprint_of",
    "load_update",
    "read_inputs",
    "read_state",
    "restore_rating",
    "restore_reference",
    "step_of",
]

MANIFEST, TRAINER, OPTIMIZER, PAST = "manifest.json", "trainer.json", "optimizer.pt", "past.pt"
INPUTS = "inputs.json"
USE_ANOTHER = "Remove this checkpoint's folder to resume from the one before it, or restore the file"


@dataclass
class TrainerState:
    """Where a run stands, beside the weights and the state of its update. The loop owns it, and moves it on.

    Fields:
      step: updates made so far = the next step's index, on which schedules and randomness depend.
      prompts_used: data cursor; prompts drawn so far.
      seed: of the run.
      best_value, best_step: best evaluation so far and when.
      rating: state of the combination of rewards, see `rewards.Rating`; empty in a run without one.
    """

    step: int = 0
    prompts_used: int = 0
    seed: int = 0
    best_value: float | None = None
    best_step: int | None = None
    rating: dict[str, Any] = field(default_factory=dict)


def read_state(path: Path) -> TrainerState:
    """The trainer state of a checkpoint.

    Raises:
      CheckpointError: the file is damaged.
    """
    try:
        state = TrainerState(**json.loads((path / TRAINER).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as problem:
        raise CheckpointError(f"{path / TRAINER} cannot be read: {in_short(problem)}. {USE_ANOTHER}") from problem
    counts = (state.step, state.prompts_used, state.seed, 0 if state.best_step is None else state.best_step)
    are_counts = all(type(value) is int and value >= 0 for value in counts)
    best = state.best_value
    is_number = best is None or (type(best) in (int, float) and math.isfinite(best))
    if not (are_counts and is_number and isinstance(state.rating, dict)) or state.step != step_of(path.name):
        raise CheckpointError(f"{path / TRAINER} does not hold the state of {path.name}: {vars(state)}. {USE_ANOTHER}")
    return state


def read_inputs(path: Path) -> dict[str, Any] | None:
    """What a checkpoint was made from, by content: `inputs` of the run's fingerprints. None = it does not say.

    Raises:
      CheckpointError: the file is damaged.
    """
    file = path / INPUTS
    if not file.exists():
        return None
    try:
        inputs = json.loads(file.read_text(encoding="utf-8"))["inputs"]
        if isinstance(inputs, dict):
            return inputs
        problem: object = "it holds no table of inputs"
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as failure:
        problem = in_short(failure)
    raise CheckpointError(f"{file} cannot be read: {problem}. Restore it, or leave this checkpoint out.")


def load_update(path: Path, update: Update) -> None:
    """Give an update the state that a checkpoint has of it.

    Raises:
      CheckpointError: the file is damaged, has numbers that are NaN or infinite, or is not about these weights.
    """
    state = _update_state_in(path / OPTIMIZER)
    try:
        update.load_state_dict(state)
    except CheckpointError as problem:
        raise CheckpointError(f"{path / OPTIMIZER} holds {problem}. {USE_ANOTHER}.") from problem


def _update_state_in(file: Path, *, is_mapped: bool = False) -> dict[str, Any]:
    state = _load(file, is_mapped)
    if not isinstance(state, dict):
        raise CheckpointError(f"{file} is no optimizer's state. {USE_ANOTHER}")
    if not is_all_finite(tensors_in(state)):
        raise CheckpointError(f"{file} has numbers that are NaN or infinite. {USE_ANOTHER}")
    return state


def restore_reference(path: Path, reference: Reference, step: int) -> None:
    """Restore a reference as it was at a checkpoint of this step; the student is restored already.

    Raises:
      CheckpointError: the file is damaged, or those are not weights of this student.
    """
    if reference.state_at(step) is None:
        reference.refresh(step)
        return
    weights = _load(path / PAST)
    if not is_all_finite(tensors_in(weights)):
        raise CheckpointError(f"{path / PAST} has weights that are NaN or infinite. {USE_ANOTHER}")
    try:
        reference.restore(weights)
    except (RuntimeError, TypeError, KeyError, AttributeError) as problem:
        raise CheckpointError(
            f"{path / PAST} does not fit the student: {in_short(problem)}. {USE_ANOTHER}"
        ) from problem


def restore_rating(path: Path, rating: Rating | None, state: TrainerState) -> None:
    """Give the rewards of a run the state that a checkpoint has of their combination.

    Raises:
      CheckpointError: it is not one that the combination can have.
    """
    if rating is None:
        return
    try:
        rating.restore(state.rating)
    except CheckpointError as problem:
        raise CheckpointError(f"{path / TRAINER} holds {problem}. {USE_ANOTHER}.") from problem


def _load(file: Path, is_mapped: bool = False) -> Any:
    """What `torch.save` wrote: tensors and plain values only, nothing that runs.

    `is_mapped`: the tensors are views of the file, which costs no memory.
    """
    try:
        return torch.load(file, weights_only=True, map_location="cpu", mmap=is_mapped)
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, UnpicklingError) as problem:
        raise CheckpointError(f"{file} cannot be read: {in_short(problem)}. {USE_ANOTHER}") from problem


def check_read_back(
    folder: Path, update_state: Mapping[str, Any], reference: Mapping[str, Tensor] | None = None
) -> None:
    """Refuse a file of the optimizer or of the reference that does not hold what is in memory."""
    pairs = [(OPTIMIZER, update_state), *([] if reference is None else [(PAST, reference)])]
    for name, held in pairs:
        written = _load(folder / name, is_mapped=True)
        ours, theirs = list(tensors_in(held)), list(tensors_in(written))
        is_same = len(ours) == len(theirs) and all(map(_is_equal, ours, theirs))
        if not is_same:
            raise CheckpointError(f"{name}, read back, does not hold what is in memory")


def _is_equal(ours: Tensor, theirs: Tensor) -> bool:
    return ours.dtype == theirs.dtype and torch.equal(ours.cpu(), theirs)


def step_of(name: Any) -> int | None:
    """The step of a checkpoint's folder name; None if it is no such name."""
    found = re.fullmatch(r"step-(\d{1,18})", name) if isinstance(name, str) else None
    return int(found.group(1)) if found else None


def damage_of(path: Path) -> str | None:
    """What is wrong with a checkpoint: a file that changed, is missing or cannot be used; None = nothing."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        for name, expected in manifest.items():
            if name == BASE:  # it names the place of an adapter's base, and is corrected when that was moved
                continue
            if Path(name).name != name:
                return f"{MANIFEST} names {name!r}, which is not beside it"
            if not (path / name).is_file():
                return f"{name} is missing"
            if fingerprint_of(path / name) != expected:
                return f"{name} is not what was written"
        if missing := {TRAINER, OPTIMIZER} - manifest.keys():
            return f"{MANIFEST} does not list {sorted(missing)[0]}"
        read_state(path)
        _update_state_in(path / OPTIMIZER, is_mapped=True)
    except CheckpointError as problem:
        return str(problem).removesuffix(f". {USE_ANOTHER}")
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as problem:
        return f"{MANIFEST} cannot be read: {in_short(problem)}"
    return None


def fingerprint_of(path: Path) -> dict[str, Any]:
    """What the manifest records of a file."""
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
