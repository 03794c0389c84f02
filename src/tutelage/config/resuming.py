"""Where a run begins: in a new folder, or at a checkpoint of the run that the folder holds."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage.config.clock import date_of_run, dated
from tutelage.config.fingerprints import Inputs
from tutelage.config.load import load_config, settings_of, to_toml
from tutelage.config.places import is_address, is_path_of_content, setting_of_run, without_reward_paths
from tutelage.config.schema import RunConfig
from tutelage.errors import CheckpointError, ConfigurationError, OutputExistsError
from tutelage.files import write_whole
from tutelage.runtime import LocalRuntime
from tutelage.training import RunFolder, find_resumable, read_state
from tutelage.training.run_files import CONFIG, FINGERPRINTS

__all__ = ["Beginning", "beginning_of", "check_writable", "with_micro_batch"]


@dataclass(frozen=True)
class Beginning:
    """Where a run begins, and what is recorded of its first start.

    Fields:
      config: the run file's, with the date that a resumed run has kept.
      folder: of the run; that of a resumed one is locked from here on.
      is_resumed: the folder holds the run.
      checkpoint: to continue from; None = there is none, so at step 0.
      inputs: what the run reads; pieces are added while it is put together.
      messages: for the user.
    """

    config: RunConfig
    folder: RunFolder
    is_resumed: bool
    checkpoint: Path | None
    inputs: Inputs
    messages: list[str]

    def open_folder(self, config: RunConfig) -> None:
        """Make a new run's folder; in that of a resumed one, record what has changed.

        The config.toml of a run that is resumed with more steps gets them; otherwise the next resume would end too
        early.
        """
        if not self.is_resumed:
            self.folder.create(to_toml(config), self.inputs.to_file(None, 0))
            return
        path, text, recorded = self.folder.path / CONFIG, to_toml(config), self.folder.read_fingerprints()
        if path.read_text(encoding="utf-8") != text:
            write_whole(path, text)
        now = self.inputs.to_file(recorded, 0 if self.checkpoint is None else read_state(self.checkpoint).step)
        if recorded != now:
            self.folder.write_fingerprints(now)


def beginning_of(
    config: RunConfig, folder: RunFolder, runtime: LocalRuntime, *, resume: bool, accept: Sequence[str]
) -> Beginning:
    """Find out where a run begins.

    Args:
      runtime: whose processes begin together.
      resume: continue the run that the folder holds.
      accept: names of `fingerprints.INPUTS` that may have changed since the run began.
    Raises:
      OutputExistsError: the folder is there and `resume` is False, or another process works in it.
      CheckpointError, ConfigurationError: it holds no run that could be continued.
    """
    if resume:
        config = dated(config, runtime.from_first(lambda: date_of_run(folder.path)))
        config = _with_recorded_micro_batch(config, runtime.from_first(lambda: _recorded_micro_batch(folder.path)))
    checkpoint, messages = runtime.from_first(lambda: _first_checkpoint(config, folder, resume))
    before, remarks = runtime.from_first(lambda: _recorded_inputs(folder, resume))
    inputs = Inputs(runtime, before, accept)
    if checkpoint is not None and not checkpoint.is_dir():
        raise CheckpointError(
            f"--resume: {checkpoint} cannot be seen by this process. Put the output folder on a file system that "
            "all machines of the run share."
        )
    return Beginning(config, folder, resume, checkpoint, inputs, [*messages, *remarks])


def with_micro_batch(config: RunConfig, tokens: int) -> RunConfig:
    """The configuration with the tokens of a micro-batch, so that a resumed run cuts, and rounds, its sums alike."""
    runtime = config.runtime.model_copy(update={"micro_batch_tokens": tokens})
    return config if runtime == config.runtime else config.model_copy(update={"runtime": runtime})


def _with_recorded_micro_batch(config: RunConfig, tokens: int | None) -> RunConfig:
    """What the run has written down, unless the run file names another number."""
    return config if tokens is None or config.runtime.names_micro_batch else with_micro_batch(config, tokens)


def _recorded_micro_batch(folder: Path) -> int | None:
    """The tokens of a micro-batch in the configuration of the run that a folder holds; None without a run."""
    tokens = setting_of_run(folder, "runtime", "micro_batch_tokens")
    return tokens if isinstance(tokens, int) and tokens > 0 else None


def _first_checkpoint(config: RunConfig, folder: RunFolder, resume: bool) -> tuple[Path | None, list[str]]:
    """The checkpoint to continue from (None = there is none), and messages for the user."""
    if folder.path.exists() and not resume:
        raise OutputExistsError(
            f"the output folder {folder.path} already exists, and a run never overwrites one. Choose another with "
            "--set output=FOLDER, or continue that run with --resume."
        )
    check_writable(folder.path)
    return _resumable(config, folder) if resume else (None, [])


def _resumable(config: RunConfig, folder: RunFolder) -> tuple[Path | None, list[str]]:
    """The checkpoint to continue from (None = the run was killed before its first one), and messages for the user."""
    saved = folder.path / "config.toml"
    if not saved.is_file():
        raise CheckpointError(
            f"--resume: {folder.path} holds no run (no config.toml). Start it without --resume, or set output=FOLDER."
        )
    folder.hold()
    # More steps, other evaluations and checkpoints, and other processes are a continuation, and so is a server that
    # comes back at another address; anything else would be another run.
    shared = ("runtime.strategy", "runtime.shard_teacher", "runtime.timeout_seconds")
    elsewhere = ("vllm.", "teacher.server", "teacher.timeout_seconds", "teacher.retries")
    free = ("steps", "evaluation.", "checkpoint.", "logging.", "output", *shared, *elsewhere)
    before, now = (settings_of(each) for each in (load_config(saved), config))
    knows_content = folder.read_fingerprints() is not None  # then a path may change, since content is compared
    if knows_content:
        before, now = without_reward_paths(before), without_reward_paths(now)
    changed = [
        f"{key} is {now.get(key)!r}, was {before.get(key)!r}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
        and not (key.startswith(free) or is_address(key))
        and not (knows_content and before.get(key) and now.get(key) and is_path_of_content(key))
    ]
    if changed:
        raise ConfigurationError(
            f"--resume: {'; '.join(changed)} in {saved}; a resumed run must be the run that was started. "
            "Undo the change, or start a new run with --set output=FOLDER."
        )
    _check_models_are_there(config, folder)
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


def _check_models_are_there(config: RunConfig, folder: RunFolder) -> None:
    """Refuse a model whose folder is gone, which would then be looked for on the hub."""
    before = (folder.read_fingerprints() or {}).get("inputs", {})
    for role, path in (("student", config.student.path), ("teacher", config.teacher.path)):
        was_folder = str(before.get(role, {}).get("weights", "")).startswith("sha256")
        if was_folder and not Path(path).exists():
            raise ConfigurationError(
                f"--resume: {role}.path is {path!r}, a model directory that is not there any more. Put it back, or say "
                f"where it is now: --set {role}=FOLDER"
            )


def _recorded_inputs(folder: RunFolder, resume: bool) -> tuple[Mapping[str, Any] | None, list[str]]:
    """What a resumed run read when it began (None = it begins now, or that was not recorded), and messages."""
    recorded = folder.read_fingerprints() if resume else None
    if resume and recorded is None:
        return None, [
            f"warning: {folder.path} has no record of what the run read when it began (no {FINGERPRINTS}), so it is "
            "not known whether data, models and libraries are still the same; they are recorded from here on"
        ]
    return None if recorded is None else dict(recorded.get("inputs", {})), []


def check_writable(path: Path) -> None:
    """Refuse an output folder that cannot be written to, before hours of compute."""
    place = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    if not os.access(place, os.W_OK) or not (place.is_dir() or place == path):
        raise ConfigurationError(
            f"{path} cannot be written: {place} is not a folder that you may write to. Choose another place."
        )
