"""The files a run leaves behind, and nothing else writes: configuration, metrics, samples, evaluations.

config.toml         the run as resolved, enough to repeat it
metrics.jsonl       one line per step
evaluations.jsonl   one line per evaluation
samples.jsonl       some rollouts as text
evaluations/        every sample of every evaluation
checkpoints/        see `training.checkpoint`
superseded.jsonl    lines that a resumed run wrote again
curves.png          drawn by `report`
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tutelage.errors import OutputExistsError
from tutelage.evaluation import EvaluationSample
from tutelage.files import named, write_whole

__all__ = ["RunFolder"]


class RunFolder:
    """One run's folder: new for a new run, cut back to the checkpoint for a resumed one.

    `writes`: False = another process of the run writes its files, and everything here that would does nothing.
    """

    def __init__(self, path: Path, *, writes: bool = True) -> None:
        self.path, self.writes = path, writes

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints live."""
        return self.path / "checkpoints"

    @property
    def evaluations(self) -> Path:
        """Where the samples of evaluations live."""
        return self.path / "evaluations"

    def create(self, config_toml: str) -> None:
        """Make the folder for a new run.

        Raises:
          OutputExistsError: something is already there.
        """
        if not self.writes:
            return
        beside = self.path.with_name(f".{self.path.name}.partial")
        try:
            if self.path.exists():
                raise FileExistsError
            # Renamed into place, so that no kill leaves a folder that is neither a run nor free for one.
            beside.mkdir(parents=True, exist_ok=True)
            (beside / "config.toml").write_text(config_toml)
            beside.rename(self.path)
        except FileExistsError:
            raise OutputExistsError(
                f"the output folder {self.path} already exists, and a run never overwrites one. Choose another with "
                "--set output=FOLDER, or continue that run with --resume."
            ) from None

    def append(self, name: str, records: Iterable[dict[str, Any]]) -> None:
        """Add lines to one of the JSONL files."""
        if not self.writes:
            return
        text = "".join(json.dumps(record) + "\n" for record in records)
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
            except ValueError:
                continue
        return records

    def write_samples(self, step: int, name: str, samples: Iterable[EvaluationSample]) -> None:
        """Keep every sample of one evaluation in a file of its own."""
        if not self.writes:
            return
        self.evaluations.mkdir(exist_ok=True)
        # The step was not on file when it was evaluated, so an existing file is that of a killed run.
        path = self.evaluations / f"step-{step:06d}-{name}.jsonl"
        write_whole(path, "".join(json.dumps(asdict(sample)) + "\n" for sample in samples))

    def cut_back(self, step: int) -> None:
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
        }
        for name, is_after in after.items():
            if not (self.path / name).exists():
                continue
            records = self.read(name)
            moved = [{"file": name, **record} for record in records if is_after(record)]
            if moved:
                self.append("superseded.jsonl", moved)
            kept = "".join(json.dumps(record) + "\n" for record in records if not is_after(record))
            write_whole(self.path / name, kept)
