"""Where a run begins: in a new folder, or at a checkpoint of the run that the folder holds."""

from __future__ import annotations

import os
from pathlib import Path

from tutelage.config.load import load_config, settings_of, to_toml
from tutelage.config.schema import RunConfig
from tutelage.errors import CheckpointError, ConfigurationError, OutputExistsError
from tutelage.files import write_whole
from tutelage.training import RunFolder, find_resumable, read_state

__all__ = ["beginning_of", "keep_changes", "refuse_unwritable"]


def beginning_of(config: RunConfig, folder: RunFolder, resume: bool) -> tuple[Path | None, list[str]]:
    """The checkpoint to continue from (None = there is none), and what to tell the user."""
    if folder.path.exists() and not resume:
        raise OutputExistsError(
            f"the output folder {folder.path} already exists, and a run never overwrites one. Choose another with "
            "--set output=FOLDER, or continue that run with --resume."
        )
    refuse_unwritable(folder.path)
    return _resumable(config, folder) if resume else (None, [])


def _resumable(config: RunConfig, folder: RunFolder) -> tuple[Path | None, list[str]]:
    """The checkpoint to continue from (None = the run was killed before its first one), and what to tell the user."""
    saved = folder.path / "config.toml"
    if not saved.is_file():
        raise CheckpointError(
            f"--resume: {folder.path} holds no run (no config.toml). Start it without --resume, or set output=FOLDER."
        )
    # More steps, more frequent looks and other processes are a continuation; anything else would be another run.
    # So is the same work done elsewhere: a server may come back at another address.
    shared = ("runtime.strategy", "runtime.shard_teacher", "runtime.timeout_seconds")
    elsewhere = ("vllm.", "teacher.server", "teacher.timeout_seconds", "teacher.retries")
    free = ("steps", "evaluation.", "checkpoint.", "logging.", "output", *shared, *elsewhere)
    before, now = (settings_of(each) for each in (load_config(saved), config))
    changed = [
        f"{key} is {now.get(key)!r}, was {before.get(key)!r}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not key.startswith(free)
    ]
    if changed:
        raise ConfigurationError(
            f"--resume: {'; '.join(changed)} in {saved}; a resumed run must be the run that was started. "
            "Undo the change, or start a new run with --set output=FOLDER."
        )
    path, complaints = find_resumable(folder.checkpoints)
    if path is None and complaints:
        raise CheckpointError(
            f"--resume: no usable checkpoint in {folder.checkpoints} ({'; '.join(complaints)}). "
            "Start a new run with --set output=FOLDER."
        )
    if path is None:
        return None, ["no checkpoint was written yet; starting again at step 0"]
    reached = read_state(path).step
    if config.steps < reached:
        raise ConfigurationError(
            f"--resume: steps is {config.steps}, but {path} is at step {reached} already. Set steps to at least that, "
            "or start a new run with --set output=FOLDER."
        )
    return path, [f"{complaint}; falling back to {path.name}" for complaint in complaints]


def keep_changes(config: RunConfig, folder: RunFolder) -> None:
    """A run resumed with more steps says so in its config.toml; resuming it once more would end too early otherwise."""
    path, text = folder.path / "config.toml", to_toml(config)
    if path.read_text() != text:
        write_whole(path, text)


def refuse_unwritable(path: Path) -> None:
    """Refuse an output whose place cannot be written to; better now than after hours of compute."""
    place = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    if not os.access(place, os.W_OK) or not (place.is_dir() or place == path):
        raise ConfigurationError(
            f"{path} cannot be written: {place} is not a folder that you may write to. Choose another place."
        )
