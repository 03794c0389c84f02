"""Checkpoints that cannot be half there.

    checkpoints/
      step-000020/            a plain Hugging Face model directory (config, safetensors, tokenizer), or with an adapter
                              that alone (adapter_config, adapter_model, base.json), plus
        optimizer.pt          the update's state, such as AdamW's moments
        past.pt               weights of a reference that follows the student
        trainer.json          step, data cursor, seed, scores so far
        inputs.json           what it was made from, by content: the run's fingerprints as they were then
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
from torch import Tensor

from tutelage.errors import CheckpointError, ConfigurationError, ModelError, NonFiniteError
from tutelage.files import write_whole
from tutelage.models import LanguageModel, Vocabulary, check_saved, is_all_finite, save_student
from tutelage.models.finite import tensors_in
from tutelage.training.checkpoint_files import (
    INPUTS,
    MANIFEST,
    OPTIMIZER,
    PAST,
    TRAINER,
    TrainerState,
    check_read_back,
    damage_of,
    fingerprint_of,
    step_of,
)

__all__ = ["CheckpointSettings", "Checkpoints", "checkpoints_in", "find_resumable", "named_checkpoints"]

INDEX = "index.json"


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


class Checkpoints:
    """The `checkpoints/` folder of one run.

    `inputs`: what each of them is to say that it was made from, see `checkpoint_files.read_inputs`; None = nothing.
    """

    def __init__(self, folder: Path, settings: CheckpointSettings, inputs: Mapping[str, Any] | None = None) -> None:
        self.folder = folder
        self.settings = settings
        self.inputs = dict(inputs or {})

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step lives."""
        return self.folder / f"step-{step:06d}"

    def save(
        self,
        state: TrainerState,
        student: LanguageModel,
        vocabulary: Vocabulary,
        update_state: Mapping[str, Any],
        reference: Mapping[str, Tensor] | None = None,
    ) -> Path:
        """Write the checkpoint of `state.step` and read it back, then drop the ones that need not stay.

        `update_state`: see `Update`. `reference`: weights of one that follows the student, see `MovingReference`.

        Raises:
          CheckpointError: it could not be written (disk full, permissions), or what was written is not what is in
            memory; earlier checkpoints are untouched.
          NonFiniteError: weights or state are NaN or infinite; nothing was written.
        """
        if not is_all_finite([*student.trainable_state().values(), *tensors_in(update_state)]):
            raise NonFiniteError(
                "the student's weights or the optimizer's moments are NaN or infinite, so they are not saved"
            )
        place = self.path(state.step)
        beside = self.folder / f".writing-{place.name}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(beside, ignore_errors=True)  # left by a run that was killed while writing
            beside.mkdir()
            save_student(student, vocabulary, beside)
            torch.save(update_state, beside / OPTIMIZER)
            if reference is not None:
                torch.save(reference, beside / PAST)
            _write_json(beside / TRAINER, vars(state))
            if self.inputs:
                _write_json(beside / INPUTS, self.inputs)
            check_saved(student, vocabulary, beside)
            check_read_back(beside, update_state, reference)
            _write_json(beside / MANIFEST, {path.name: fingerprint_of(path) for path in sorted(beside.iterdir())})
            for path in (*beside.iterdir(), beside):
                _flush(path)
            if place.exists():  # a damaged one that the run fell back from; a good one is never written twice
                place.rename(self._free_name(place))
            beside.rename(place)
            _flush(self.folder)
            self._write_index(state)
        except ModelError as problem:
            shutil.rmtree(beside, ignore_errors=True)
            raise CheckpointError(
                f"the checkpoint of step {state.step} is not the student in memory, and was dropped: {problem} Earlier "
                "checkpoints are untouched."
            ) from problem
        except (OSError, RuntimeError, SafetensorError) as problem:  # a full disk, as each of the writers reports it
            shutil.rmtree(beside, ignore_errors=True)
            raise CheckpointError(
                f"the checkpoint of step {state.step} could not be written to {self.folder}: {problem}. Earlier "
                "checkpoints are untouched. Make room or correct the permissions, then resume with --resume."
            ) from problem
        self._drop_old(state)
        return place

    def repair_index(self, state: TrainerState) -> None:
        """Finish what a kill right after the checkpoint of `state.step` left undone, if that is the newest one."""
        if max(step for step, _ in checkpoints_in(self.folder)) == state.step:
            self._write_index(state)
            self._drop_old(state)

    def _drop_old(self, state: TrainerState) -> None:
        steps = sorted(step for step, _ in checkpoints_in(self.folder))
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
    """The checkpoints of `checkpoints/` by name: "last" and, where there is one, "best"; empty before the first.

    Raises:
      CheckpointError: the index cannot be read, or names something else than checkpoints beside it.
    """
    index = folder / INDEX
    if not index.is_file():
        return {}
    try:
        noted = json.loads(index.read_text(encoding="utf-8"))
        named = {name: noted[name] for name in ("last", "best") if name in noted}
        is_right = isinstance(noted, dict) and all(step_of(name) is not None for name in named.values())
    except (OSError, ValueError, TypeError, RecursionError):
        is_right = False
    if not is_right:
        raise CheckpointError(
            f"{index} cannot be read, or names no checkpoint beside it; expected names such as 'step-000020'. Resume "
            "the run, which writes it anew, or give the checkpoint's own folder."
        )
    return {name: folder / each for name, each in named.items()}


def find_resumable(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that is whole, and what was wrong with newer ones.

    Args:
      folder: `checkpoints/` of a run; it need not exist.
    Returns:
      (path or None, one line for every newer checkpoint that cannot be used).
    """
    complaints: list[str] = []
    for _, path in sorted(checkpoints_in(folder), reverse=True):
        problem = damage_of(path)
        if problem is None:
            return path, complaints
        complaints.append(f"checkpoint {path.name} is damaged ({problem})")
    return None, complaints


def checkpoints_in(folder: Path) -> Iterator[tuple[int, Path]]:
    """Step and folder of every checkpoint in `checkpoints/`, in no order; damaged ones may be among them."""
    if folder.is_dir():
        for path in folder.iterdir():
            step = step_of(path.name)
            if step is not None and path.is_dir():
                yield step, path


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_whole(path, json.dumps(content, indent=2) + "\n")


def _flush(path: Path) -> None:
    """Make what was written survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
