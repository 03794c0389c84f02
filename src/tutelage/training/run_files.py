"""The files that a run writes, and nothing else does: configuration, metrics, samples, evaluations.

config.toml         the run as resolved, enough to repeat it
fingerprints.json   digests of what the run reads, and the versions of the libraries; see `config.fingerprints`
.lock               held by the process that writes here
metrics.jsonl       one line per step
evaluations.jsonl   one line per evaluation
texts.jsonl         one line per set of given texts and evaluation
samples.jsonl       some rollouts as text
evaluations/        every sample of every evaluation, and right answers of the first, see `training.retention`
checkpoints/        see `training.checkpoint`
superseded.jsonl    lines that a resumed run wrote again
curves.png          drawn by `report`
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tutelage.errors import CheckpointError, OutputExistsError, in_short
from tutelage.evaluation import EvaluationSample
from tutelage.files import json_line, named, write_whole
from tutelage.locks import hold, release

__all__ = ["CONFIG", "FINGERPRINTS", "RunFolder"]

CONFIG, FINGERPRINTS = "config.toml", "fingerprints.json"
# What a run has written to once it has computed anything.
WRITTEN = ("checkpoints", "evaluations", "evaluations.jsonl", "metrics.jsonl")


class RunFolder:
    """One run's folder: new for a new run, cut back to the checkpoint for a resumed one.

    `writes`: False = another process of the run writes its files, and everything here that would does nothing.
    """

    def __init__(self, path: Path, *, writes: bool = True) -> None:
        self.path, self.writes = path, writes
        self._made: list[Path] = []  # by `create`: the folder, and those above it that were not there

    @property
    def holds_run(self) -> bool:
        """There is a run here, and not only a run file that is called config.toml."""
        return (self.path / CONFIG).is_file() and any((self.path / name).exists() for name in (FINGERPRINTS, *WRITTEN))

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints live."""
        return self.path / "checkpoints"

    @property
    def evaluations(self) -> Path:
        """Where the samples of evaluations live."""
        return self.path / "evaluations"

    def hold(self) -> None:
        """Be the only process that writes here, until `release` or this process's end.

        Raises:
          OutputExistsError: another process writes here; says which.
        """
        if self.writes:
            hold(self.path, "Wait for that one to end, or choose another folder with --set output=FOLDER.")

    def release(self) -> None:
        """Let others write here."""
        if self.writes:
            release(self.path)

    def create(self, config_toml: str, fingerprints: Mapping[str, Any] | None = None) -> None:
        """Make the folder for a new run, and hold it.

        Raises:
          OutputExistsError: something is already there, or is being made there.
          OSError: it cannot be written; names the file, and nothing is left behind.
        """
        if not self.writes:
            return
        if self.path.exists():
            raise self._exists()
        place = self.path.absolute()
        beside = place.with_name(f".{place.name}.partial")
        missing = [parent for parent in place.parents if not parent.exists()]
        try:
            beside.mkdir(parents=True, exist_ok=True)  # there already: left by a run that was killed at this point
        except OSError:
            _remove([beside, *missing])
            raise
        RunFolder(beside).hold()
        try:
            # Renamed into place, so that no kill leaves a folder that is neither a run nor free for one.
            for name, text in ((CONFIG, config_toml), (FINGERPRINTS, _as_json(fingerprints or {}))):
                with named(beside / name):
                    (beside / name).write_text(text, encoding="utf-8")
            beside.rename(self.path)
            self._made = [place, *missing]
        except BaseException as problem:
            release(beside)
            _remove([beside, *missing])
            if isinstance(problem, OSError) and problem.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise self._exists() from None
            raise

    def remove_if_unused(self) -> None:
        """Take back what `create` made if the run wrote nothing to it, so that the corrected command may begin anew."""
        if self._made and not any((self.path / name).exists() for name in WRITTEN):
            self.release()
            _remove(self._made)

    def _exists(self) -> OutputExistsError:
        return OutputExistsError(
            f"the output folder {self.path} already exists, and a run never overwrites one. Choose another with "
            "--set output=FOLDER, or continue that run with --resume."
        )

    def read_fingerprints(self) -> dict[str, Any] | None:
        """What the run read when it began; None = it was made by a version that did not keep that.

        Raises:
          CheckpointError: the file cannot be read.
        """
        path = self.path / FINGERPRINTS
        if not path.exists():
            return None
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(found, dict):
                raise ValueError("it holds no table")
        except (OSError, ValueError, RecursionError) as problem:
            raise CheckpointError(
                f"{path} cannot be read ({in_short(problem)}), so what the run began with is not known. Restore the "
                "file; or delete it, and the run is resumed with whatever is there now."
            ) from problem
        return found

    def write_fingerprints(self, fingerprints: Mapping[str, Any]) -> None:
        """Keep what the run reads."""
        if self.writes:
            write_whole(self.path / FINGERPRINTS, _as_json(fingerprints))

    def append(self, name: str, records: Iterable[dict[str, Any]]) -> None:
        """Add lines to one of the JSONL files."""
        if not self.writes:
            return
        text = "".join(json_line(record) for record in records)
        path = self.path / name
        with named(path), path.open("a") as file:
            file.write(text)

    def read(self, name: str) -> list[dict[str, Any]]:
        """Whole lines of a JSONL file; a last line torn by a kill is left out."""
        path = self.path / name
        records = []
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                records.append(json.loads(line))
            except (ValueError, RecursionError):
                continue
        return records

    def write_samples(self, step: int, name: str, samples: Iterable[EvaluationSample]) -> None:
        """Keep every sample of one evaluation in a file of its own."""
        if not self.writes:
            return
        self.evaluations.mkdir(exist_ok=True)
        # The step was not recorded when it was evaluated, so an existing file is that of a killed run.
        path = self.evaluations / _samples_file(step, name)
        write_whole(path, "".join(json_line(asdict(sample)) for sample in samples))

    def read_samples(self, step: int, name: str) -> list[dict[str, Any]]:
        """The samples of an evaluation; none where its file is gone."""
        return self.read(f"evaluations/{_samples_file(step, name)}")

    def write_kept(self, name: str, rows: Iterable[dict[str, Any]]) -> None:
        """Keep right answers of a set's first evaluation."""
        if self.writes:
            self.evaluations.mkdir(exist_ok=True)
            write_whole(self.evaluations / f"kept-{name}.jsonl", "".join(map(json_line, rows)))

    def read_kept(self, name: str) -> list[dict[str, Any]]:
        """What `write_kept` has written; none where there is no such file."""
        return self.read(f"evaluations/kept-{name}.jsonl")

    def truncate_to(self, step: int) -> None:
        """Forget what was written after the checkpoint of `step`: the resumed run writes it again.

        The lines are moved to `superseded.jsonl`, not deleted.
        """
        if not self.writes:
            return
        # A metric line of step k was made by the update from k to k + 1; an evaluation of step k, before it.
        after: dict[str, Callable[[dict[str, Any]], bool]] = {
            "metrics.jsonl": lambda record: record["step"] >= step,
            "samples.jsonl": lambda record: record["step"] >= step,
            "evaluations.jsonl": lambda record: record["step"] > step,
            "texts.jsonl": lambda record: record["step"] > step,
        }
        for name, is_after in after.items():
            if not (self.path / name).exists():
                continue
            records = self.read(name)
            moved = [{"file": name, **record} for record in records if is_after(record)]
            if moved:
                self.append("superseded.jsonl", moved)
            kept = "".join(json_line(record) for record in records if not is_after(record))
            write_whole(self.path / name, kept)


def _samples_file(step: int, name: str) -> str:
    return f"step-{step:06d}-{name}.jsonl"


def _as_json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2) + "\n"


def _remove(folders: Iterable[Path]) -> None:
    """Remove a folder with all that is in it, and those above it that are empty then."""
    first, *above = folders
    shutil.rmtree(first, ignore_errors=True)
    for parent in above:
        with suppress(OSError):
            parent.rmdir()
