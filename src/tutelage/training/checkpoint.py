"""Checkpoints that cannot be half there.

    checkpoints/
      step-000020/            a plain Hugging Face model directory (config, safetensors, tokenizer), or with an adapter
                              that alone (adapter_config, adapter_model, base.json), plus
        optimizer.pt          AdamW's moments
        past.pt               weights of the student at an earlier step, where a target looks back at it
        trainer.json          step, data cursor, seed, scores so far
        manifest.json         size and SHA-256 of every other file; written last
      index.json              which one is last, which one is best

A checkpoint is written into a folder beside its place, flushed to disk, and renamed. Whatever interrupts the writing
leaves the earlier ones as they were. There is no random-number state to keep: every draw is a function of (seed, step,
prompt, sample, position), and the schedules and the data cursor are functions of the step.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from tutelage.errors import CheckpointError, ConfigurationError
from tutelage.files import sha256_of, write_whole
from tutelage.models import LanguageModel, Vocabulary, save_student
from tutelage.models.adapters import BASE

__all__ = ["CheckpointSettings", "Checkpoints", "TrainerState", "find_resumable", "named_checkpoints"]

INDEX, MANIFEST, TRAINER, OPTIMIZER, PAST = "index.json", "manifest.json", "trainer.json", "optimizer.pt", "past.pt"


@dataclass(frozen=True)
class CheckpointSettings:
    """When to save, and what to keep.

    Fields:
      every: steps between checkpoints; the end of the run is always saved.
      keep_last: how many of the newest stay (2 leave a spare, should the newest be damaged).
      best_metric: evaluation result that decides which checkpoint is the best one; higher is better. That one stays.
    """

    every: int = 20
    keep_last: int = 2
    best_metric: str = "pass_at_1"

    def __post_init__(self) -> None:
        for name in ("every", "keep_last"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"checkpoint.{name} is {getattr(self, name)}; it must be at least 1.")


@dataclass
class TrainerState:
    """Where a run stands, beside the weights and the optimizer.

    Fields:
      step: updates made so far = the next step's index, on which schedules and randomness depend.
      prompts_used: data cursor; prompts drawn so far.
      seed: of the run.
      best_value, best_step: best evaluation so far and when.
    """

    step: int = 0
    prompts_used: int = 0
    seed: int = 0
    best_value: float | None = None
    best_step: int | None = None


class Checkpoints:
    """The `checkpoints/` folder of one run."""

    def __init__(self, folder: Path, settings: CheckpointSettings) -> None:
        self.folder = folder
        self.settings = settings

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step lives."""
        return self.folder / f"step-{step:06d}"

    def save(
        self,
        state: TrainerState,
        student: LanguageModel,
        vocabulary: Vocabulary,
        moments: Mapping[str, Any],
        past: LanguageModel | None = None,
    ) -> Path:
        """Write the checkpoint of `state.step`, then drop the ones that need not stay.

        `moments`: the optimizer's state. `past`: the student of an earlier step, if the run cannot do without it.

        Raises:
          CheckpointError: it could not be written (disk full, permissions); earlier checkpoints are untouched.
        """
        place = self.path(state.step)
        beside = self.folder / f".writing-{place.name}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(beside, ignore_errors=True)  # left by a run that was killed while writing
            beside.mkdir()
            save_student(student, vocabulary, beside)
            torch.save(moments, beside / OPTIMIZER)
            if past is not None:
                torch.save(past.learned(), beside / PAST)
            _write_json(beside / TRAINER, vars(state))
            _write_json(beside / MANIFEST, {path.name: _fingerprint(path) for path in sorted(beside.iterdir())})
            for path in (*beside.iterdir(), beside):
                _flush(path)
            if place.exists():  # a damaged one that the run fell back from; a good one is never written twice
                place.rename(self._free_name(place))
            beside.rename(place)
            _flush(self.folder)
            self._write_index(state)
        except (OSError, RuntimeError, SafetensorError) as problem:  # a full disk, as each of the writers reports it
            shutil.rmtree(beside, ignore_errors=True)
            raise CheckpointError(
                f"the checkpoint of step {state.step} could not be written to {self.folder}: {problem}. Earlier "
                "checkpoints are untouched. Make room or correct the permissions, then resume with --resume."
            ) from problem
        self._drop_old(state)
        return place

    def settle(self, state: TrainerState) -> None:
        """Do what a kill right behind the newest checkpoint, that of `state.step`, left undone: index and old ones."""
        if max(step for step, _ in _complete(self.folder)) == state.step:
            self._write_index(state)
            self._drop_old(state)

    def _drop_old(self, state: TrainerState) -> None:
        steps = sorted(step for step, _ in _complete(self.folder))
        keep = {*steps[-self.settings.keep_last :], state.step, state.best_step}
        for step in steps:
            if step not in keep:
                shutil.rmtree(self.path(step), ignore_errors=True)

    def _write_index(self, state: TrainerState) -> None:
        index: dict[str, Any] = {"last": self.path(state.step).name}
        if state.best_step is not None and (state.best_step == state.step or self.path(state.best_step).exists()):
            metric = self.settings.best_metric
            index |= {"best": self.path(state.best_step).name, "best_metric": metric, "best_value": state.best_value}
        _write_json(self.folder / INDEX, index)

    def _free_name(self, place: Path) -> Path:
        names = (place.with_name(f"damaged-{place.name}-{number}") for number in range(1, 1000))
        return next(name for name in names if not name.exists())


def named_checkpoints(folder: Path) -> dict[str, Path]:
    """Which checkpoint is "last", and which is "best" where one is, of `checkpoints/`; empty before the first."""
    index = folder / INDEX
    noted = json.loads(index.read_text()) if index.is_file() else {}
    return {name: folder / noted[name] for name in ("last", "best") if name in noted}


def find_resumable(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that is whole, and what was wrong with newer ones.

    Args:
      folder: `checkpoints/` of a run; it need not exist.
    Returns:
      (path or None, one line for every newer checkpoint that cannot be used).
    """
    complaints: list[str] = []
    for _, path in sorted(_complete(folder), reverse=True):
        problem = _damage(path)
        if problem is None:
            return path, complaints
        complaints.append(f"checkpoint {path.name} is damaged ({problem})")
    return None, complaints


def read_state(path: Path) -> TrainerState:
    """The trainer state of a checkpoint that `find_resumable` found whole."""
    return TrainerState(**json.loads((path / TRAINER).read_text()))


def read_moments(path: Path) -> Mapping[str, Any]:
    """The optimizer's state of a checkpoint."""
    moments: Mapping[str, Any] = torch.load(path / OPTIMIZER, weights_only=True, map_location="cpu")
    return moments


def load_past(path: Path, past: LanguageModel) -> None:
    """Give a copy of the student the weights that `save` got as `past`."""
    past.load_learned(torch.load(path / PAST, weights_only=True, map_location="cpu"))


def _complete(folder: Path) -> Iterator[tuple[int, Path]]:
    if folder.is_dir():
        for path in folder.iterdir():
            if path.name.startswith("step-") and path.name[5:].isdigit() and path.is_dir():
                yield int(path.name[5:]), path


def _damage(path: Path) -> str | None:
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        for name, expected in manifest.items():
            if name == BASE:  # which says where an adapter's base lies, and is corrected when that is moved
                continue
            if not (path / name).exists():
                return f"{name} is missing"
            if _fingerprint(path / name) != expected:
                return f"{name} is not what was written"
    except (OSError, ValueError, AttributeError) as problem:
        return f"{MANIFEST} cannot be read: {problem}"
    return None


def _fingerprint(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_whole(path, json.dumps(content, indent=2) + "\n")


def _flush(path: Path) -> None:
    """Make what was written survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
