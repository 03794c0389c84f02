"""What goes wrong from outside: kills at the worst moments, a full disk. `benchmarks/faults.py` kills at any moment."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.support.commands import SHORT, Patch, command, exit_code
from tests.support.tiny_run import write_run_file
from tutelage.config import build_run, load_config
from tutelage.training import Checkpoints, GradientUpdate, Observer, RunFolder, checkpoint, train


def run(path: Path, *, resume: bool = False) -> None:
    train(build_run(load_config(path, SHORT), resume=resume), Observer())


def is_killed(action: Callable[[], object], patch: Patch) -> bool:
    """Whether SIGKILL ended it."""
    return exit_code(action, patch) == -signal.SIGKILL


def dies(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def traced(owner: object, name: str, call: int, *, before: bool) -> Patch:
    """A trap: the process dies at the given call of a function, before or after what it does."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        original, calls = getattr(owner, name), []

        def trap(*arguments, **keywords):
            calls.append(None)
            if before and len(calls) == call:
                dies()
            result = original(*arguments, **keywords)
            if len(calls) == call:
                dies()
            return result

        monkeypatch.setattr(owner, name, trap)

    return patch


def half_a_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    def save(content, place, *_):
        Path(place).write_bytes(b"half of it")
        dies()

    monkeypatch.setattr(checkpoint.torch, "save", save)


def snapshot(folder: Path) -> dict[str, object]:
    """Everything a run leaves, the seconds aside; `superseded.jsonl` tells of the kill and is left out."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir() or name in ("config.toml", "superseded.jsonl"):
            continue
        read = RunFolder(folder).read
        is_timed = name in ("metrics.jsonl", "evaluations.jsonl")
        found[name] = (
            [{k: v for k, v in record.items() if "second" not in k} for record in read(name)]
            if is_timed
            else path.read_bytes()
        )
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("undisturbed")
    run(write_run_file(folder))
    return snapshot(folder / "run")


MOMENTS: dict[str, Patch] = {
    "an evaluation was recorded, and its samples?": traced(RunFolder, "append", 1, before=False),
    "samples of an evaluation were written, and its result not": traced(RunFolder, "write_samples", 1, before=False),
    "an update was made and not yet filed": traced(GradientUpdate, "commit", 2, before=False),
    "half a checkpoint was written": half_a_checkpoint,
    "a checkpoint was in place and the index not written": traced(Checkpoints, "_write_index", 2, before=True),
    "the last checkpoint was in place, the old ones not dropped": traced(Checkpoints, "_drop_old", 3, before=True),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_ends_in_the_same_bytes(undisturbed: dict[str, object], tmp_path: Path, moment: str) -> None:
    path = write_run_file(tmp_path)
    assert is_killed(lambda: run(path), MOMENTS[moment])
    run(path, resume=True)
    assert snapshot(tmp_path / "run") == undisturbed


def test_a_run_is_killed_again_while_it_is_resumed(undisturbed: dict[str, object], tmp_path: Path) -> None:
    path = write_run_file(tmp_path)
    assert is_killed(lambda: run(path), MOMENTS["an update was made and not yet filed"])
    assert is_killed(lambda: run(path, resume=True), traced(RunFolder, "append", 1, before=False))
    run(path, resume=True)
    assert snapshot(tmp_path / "run") == undisturbed


def test_a_run_killed_while_its_folder_is_made_starts_again(undisturbed: dict[str, object], tmp_path: Path) -> None:
    path = write_run_file(tmp_path)
    assert is_killed(lambda: run(path), traced(Path, "write_text", 1, before=False))
    assert not (tmp_path / "run").exists(), "a folder without a run would be refused with --resume and without"
    run(path)
    assert snapshot(tmp_path / "run") == undisturbed


@pytest.mark.parametrize(
    ("limit_bytes", "since", "facts"),
    [
        (60_000, None, ["the checkpoint of step 1 could not be written", "File too large", "resume with --resume"]),
        (150_000, None, ["the checkpoint of step 1 could not be written", "resume with --resume"]),
        (1_000, "samples.jsonl", ["File too large", "run/samples.jsonl"]),
    ],
    ids=["weights", "moments", "samples"],
)
def test_a_disk_that_is_full_ends_the_run_in_one_line_and_loses_nothing(
    undisturbed: dict[str, object], tmp_path: Path, limit_bytes: int, since: str | None, facts: list[str]
) -> None:
    """No file may grow beyond a limit, so the system itself refuses the writing, as it does on a full disk.

    `since`: the limit holds once this file is added to.
    """
    path, said = write_run_file(tmp_path), tmp_path / "said"

    append = RunFolder.append

    def appended(folder: RunFolder, name: str, records: Iterable[dict[str, Any]]) -> None:
        if name == since:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
        append(folder, name, records)

    def limited(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(RunFolder, "append", appended)
        if since is None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))

    assert exit_code(lambda: command(path, said), limited) == 2
    (line,) = said.read_text().splitlines()
    assert line.startswith("error: ")
    for fact in facts:
        assert fact in line
    run(path, resume=True)
    assert snapshot(tmp_path / "run") == undisturbed


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_weights_that_are_nan_are_refused_before_the_run_begins(tmp_path: Path, role: str) -> None:
    path, said = write_run_file(tmp_path), tmp_path / "said"
    weights = tmp_path / role / "model.safetensors"
    tensors = load_file(weights)
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, weights, {"format": "pt"})
    assert exit_code(lambda: command(path, said), lambda _: None) == 2
    (line,) = said.read_text().splitlines()
    assert line.startswith(f"error: {tmp_path / role} has weights that are NaN or infinite, such as model.norm.weight")
    assert not (tmp_path / "run").exists()
