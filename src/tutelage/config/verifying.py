"""Is every checkpoint of a run as it was written, and is what it was made from still the same?  Digests, taken again.

Nothing is loaded that computes, nothing is written, and a run may be in progress meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tutelage.config.assembly import RunAssembly
from tutelage.config.fingerprints import (
    INPUTS,
    check_accepted,
    input_differences,
    models_read,
    vocabulary_inputs,
    weights_by_role,
)
from tutelage.config.load import load_config
from tutelage.config.model_sections import ModelConfig
from tutelage.errors import CheckpointError, TutelageError, in_short
from tutelage.models import weights_fingerprint
from tutelage.runtime import LocalRuntime
from tutelage.training import RunFolder, checkpoints_in, damage_of, read_inputs, step_of
from tutelage.training.run_files import CONFIG

__all__ = ["CheckpointVerdict", "verify_run"]


@dataclass(frozen=True)
class CheckpointVerdict:
    """What was found of one checkpoint.

    Fields:
      path: its folder.
      is_recorded: it says what it was made from; checkpoints of earlier versions do not.
      differences: what differs or cannot be taken again, a line each.
      accepted: lines of inputs that may differ.
    """

    path: Path
    is_recorded: bool
    differences: Sequence[str] = ()
    accepted: Sequence[str] = ()

    @property
    def is_verified(self) -> bool:
        """It says what it was made from, and all of that is as it was."""
        return self.is_recorded and not self.differences

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON has it."""
        return {
            "path": str(self.path),
            "is_verified": self.is_verified,
            "is_recorded": self.is_recorded,
            "differences": list(self.differences),
            "accepted": list(self.accepted),
        }


@dataclass
class InputsNow:
    """What a run would read now: digests by name, and why those are missing that could not be taken."""

    found: dict[str, Any] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)

    def take(self, names: Sequence[str], take: Callable[[], Mapping[str, Any]]) -> None:
        """Take some digests; a failure is kept, since the others can still be compared."""
        try:
            self.found |= take()
        except (TutelageError, OSError) as problem:
            self.problems |= dict.fromkeys(names, in_short(problem))


def verify_run(path: Path, accept: Sequence[str] = ()) -> list[CheckpointVerdict]:
    """Take the digests of a run's inputs again, and compare every checkpoint, in the order of steps.

    Args:
      path: the folder of a run, or one of its checkpoints.
      accept: names of `fingerprints.INPUTS` that may differ.
    Raises:
      CheckpointError: the folder holds no run, or no checkpoint.
      ConfigurationError: its config.toml cannot be read, or `accept` has another name.
    """
    check_accepted(accept)
    is_one = step_of(path.name) is not None and not (path / CONFIG).is_file()
    folder = RunFolder(path.resolve().parent.parent if is_one else path)
    if not folder.holds_run:
        raise CheckpointError(
            f"{path} is neither the folder of a run nor a checkpoint in one ({CONFIG} and what a run writes are "
            "missing). Name the folder that training has made, such as runs/trb."
        )
    checkpoints = [path.resolve()] if is_one else [found for _, found in sorted(checkpoints_in(folder.checkpoints))]
    if not checkpoints:
        raise CheckpointError(f"{folder.path} has no checkpoint yet. Let the run save one first.")
    now = _inputs_now(folder.path / CONFIG) if any(map(_says_inputs, checkpoints)) else InputsNow()
    return [_verdict(checkpoint, now, accept) for checkpoint in checkpoints]


def _inputs_now(config_file: Path) -> InputsNow:
    config, now = load_config(config_file), InputsNow()
    parts = RunAssembly(config, LocalRuntime("cpu"))  # digests are the same on every device
    for names, take in parts.input_parts.items():
        now.take(names, take)
    now.take(["vocabulary"], lambda: vocabulary_inputs(parts.vocabulary))
    roles: dict[str, dict[str, ModelConfig]] = {}
    for key, model in models_read(config, parts.needs_teacher):
        roles.setdefault(key.partition(".")[0], {})[key] = model
    for role, models in roles.items():
        now.take([role], partial(_weights_of, models))
    return now


def _weights_of(models: Mapping[str, ModelConfig]) -> dict[str, Any]:
    return weights_by_role({key: weights_fingerprint(model.source) for key, model in models.items()})


def _says_inputs(checkpoint: Path) -> bool:
    try:
        return read_inputs(checkpoint) is not None
    except CheckpointError:
        return True  # and they are damaged, which is found again below


def _verdict(checkpoint: Path, now: InputsNow, accept: Sequence[str]) -> CheckpointVerdict:
    damage = damage_of(checkpoint)
    lines = [] if damage is None else [f"files: {damage}"]
    try:
        recorded = read_inputs(checkpoint)
    except CheckpointError as problem:
        return CheckpointVerdict(checkpoint, True, lines or [f"files: {in_short(problem)}"])
    accepted: list[str] = []
    missing: dict[str, list[str]] = {}
    for name, before in (recorded or {}).items():
        if name in now.found:
            found = input_differences(name, now.found[name], before)
            (accepted if name in accept else lines).extend(f"{INPUTS.get(name, name)}: {line}" for line in found)
        elif name not in accept:
            missing.setdefault(now.problems.get(name, "the run reads none now"), []).append(name)
    lines += [f"{', '.join(names)}: cannot be taken again ({problem})" for problem, names in missing.items()]
    return CheckpointVerdict(checkpoint, recorded is not None, lines, accepted)
