"""A training run from Python: start it, resume it, watch it, and read what it left in its folder."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tutelage.api.arguments import Overrides, RunFile, threads
from tutelage.comparison import is_finished
from tutelage.config import RunConfig, build_run, load_config
from tutelage.display.progress import observer_for
from tutelage.errors import DataError, RunInterrupted
from tutelage.evaluation import EvaluationResult
from tutelage.frames import frame_of
from tutelage.preflight import early_warnings
from tutelage.report import Report, plot_run, read_jsonl, write_report
from tutelage.report.sources import flattened
from tutelage.runtime import joined
from tutelage.training import Observer, RunFolder, named_checkpoints
from tutelage.training import train as run_training
from tutelage.training.run_files import CONFIG
from tutelage.types import StepResult

if TYPE_CHECKING:
    from tutelage.frames import DataFrame

__all__ = ["SavedRun", "StepCallback", "open_run", "resume", "train"]

ASKED_TO_STOP = "stopped by on_step"


class StepCallback(Protocol):
    """What `train` calls after every step."""

    def __call__(self, step: int, metrics: Mapping[str, float], /) -> bool | None:
        """Look at the numbers of a step.

        Args:
          step: from 0, as in metrics.jsonl.
          metrics: name -> number, see docs/usage/metrics.md.
        Returns:
          True to stop: the run is saved, and `train` returns.
        """


@dataclass(frozen=True)
class SavedRun:
    """What a run has left in its folder, read anew whenever it is asked for; the run may still be going on.

    Fields:
      folder: of the run.
    """

    folder: Path

    @property
    def config(self) -> RunConfig:
        """The run file as resolved."""
        return load_config(self.folder / CONFIG)

    @property
    def metric_records(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl: what is known about each step; none before the first."""
        return _records(self.folder / "metrics.jsonl")

    @property
    def evaluation_records(self) -> list[dict[str, Any]]:
        """The lines of evaluations.jsonl: one for each evaluation of one set; none before the first."""
        return _records(self.folder / "evaluations.jsonl")

    @property
    def metrics(self) -> DataFrame:
        """A row for each step, a column for each metric; see docs/usage/metrics.md.

        Raises:
          ConfigurationError: pandas is not installed; `metric_records` needs none.
        """
        return frame_of(self.metric_records, "step")

    @property
    def evaluations(self) -> DataFrame:
        """A row for each evaluation of one set, by the step before which it was made; pass@4 is `pass_at_k.4`.

        Raises:
          ConfigurationError: pandas is not installed; `evaluation_records` needs none.
        """
        return frame_of([flattened(record) for record in self.evaluation_records], "step")

    @property
    def checkpoints(self) -> dict[str, Path]:
        """Folders of model files: "last" and, where an evaluation was better than the first one, "best"."""
        return named_checkpoints(self.folder / "checkpoints")

    @property
    def last_checkpoint(self) -> Path | None:
        """The newest weights; None before the first checkpoint."""
        return self.checkpoints.get("last")

    @property
    def best_checkpoint(self) -> Path | None:
        """The weights with the best evaluation; None where none was better than that of the untrained student."""
        return self.checkpoints.get("best")

    @property
    def is_finished(self) -> bool:
        """The last step is saved and evaluated."""
        return is_finished(self.folder, self.config.steps)

    def report(self, path: str | Path | None = None) -> Report:
        """Write one HTML page about the run; by default beside its folder, as FOLDER.report.html.

        Raises:
          OutputExistsError: there is a file that was not made as a report.
          DataError: the run has not finished a step.
        """
        return write_report([self.folder], None if path is None else Path(path))

    def as_dict(self) -> dict[str, Any]:
        """The run in short, as JSON has it: where it is, how far, its checkpoints, its last numbers."""
        metrics, evaluations = self.metric_records, self.evaluation_records
        return {
            "folder": str(self.folder),
            "name": self.config.name,
            "steps": metrics[-1]["step"] + 1 if metrics else 0,
            "num_steps": self.config.steps,
            "is_finished": self.is_finished,
            "checkpoints": {name: str(path) for name, path in self.checkpoints.items()},
            "metrics": metrics[-1] if metrics else {},
            "evaluations": list({record["name"]: record for record in evaluations}.values()),
        }


def train(
    run_file: RunFile,
    overrides: Overrides | None = None,
    *,
    resume: bool = False,
    accept: Sequence[str] = (),
    on_step: StepCallback | None = None,
    progress: bool = True,
) -> SavedRun:
    """Distil the student that a run file describes.

    Ctrl-C, or a notebook's stop button, saves the run and raises `RunInterrupted`; `resume` continues it. Signals are
    looked after in the main thread only, and given back at the end. Under torchrun every process calls this once, and
    the first one shows, writes and calls `on_step`.

    Args:
      run_file: path of a TOML file, or the table that it would hold.
      overrides: {"policy.kl_radius.start": 0.05, ...}, or texts "policy.kl_radius.start=0.05".
      resume: continue the run in the output folder from its newest whole checkpoint.
      accept: with `resume`, what may have changed since the run began, such as "versions".
      on_step: is called with the numbers of each step; True stops the run. If it fails, the run is saved first.
      progress: show curves or lines; False = show nothing.
    Raises:
      ConfigurationError, DataError, ModelError, OutputExistsError: refused before any compute is spent.
      RunInterrupted: stopped by a signal; the run is saved.
      TutelageError: what else can end a run, see `training.train`.
    """
    with ExitStack() as stack:
        processes = stack.enter_context(joined())
        is_first = processes is None or processes.rank == 0
        if not is_first:  # the first one shows them
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
        config = load_config(run_file, overrides or ())
        stack.enter_context(threads(config.runtime.threads))
        run = build_run(config, resume=resume, accept=accept, processes=processes)
        shown = stack.enter_context(observer_for(config.name)) if is_first and progress else Observer()
        for message in run.messages:
            shown.on_message(message)
        for message in early_warnings(config) if is_first and progress else ():
            shown.on_message(f"warning: {message} (tutelage doctor shows more)")
        watched = _Watched(shown, on_step if is_first else None)
        try:
            run_training(run, watched)
        except RunInterrupted as stopped:
            if watched.problem is not None:
                raise watched.problem from None
            if not str(stopped).startswith(ASKED_TO_STOP):
                raise
    if is_first:
        plot_run(run.folder.path)
    return SavedRun(run.folder.path)


def resume(
    folder: str | Path,
    overrides: Overrides | None = None,
    *,
    accept: Sequence[str] = (),
    on_step: StepCallback | None = None,
    progress: bool = True,
) -> SavedRun:
    """Continue the run in a folder; `train` says what the arguments are. More steps: {"steps": 800}.

    Raises:
      DataError: the folder holds no run.
    """
    run_file = open_run(folder).folder / CONFIG
    return train(run_file, overrides, resume=True, accept=accept, on_step=on_step, progress=progress)


def open_run(folder: str | Path) -> SavedRun:
    """The run in a folder, finished or not.

    Raises:
      DataError: the folder holds no run.
    """
    run = SavedRun(Path(folder).expanduser())
    if not RunFolder(run.folder).holds_run:
        found = "holds no run" if run.folder.is_dir() else "does not exist"
        raise DataError(f"{run.folder} {found}; expected the folder of a run, such as runs/trb, with its {CONFIG}.")
    return run


class _Watched(Observer):
    """Passes everything on to what is shown, and the numbers of each step to a callback, which may stop the run."""

    def __init__(self, shown: Observer, on_step: StepCallback | None) -> None:
        self.shown, self.callback = shown, on_step
        self.num_steps = 0
        self.problem: Exception | None = None

    def on_start(self, step: int, num_steps: int) -> None:
        self.num_steps = num_steps
        self.shown.on_start(step, num_steps)

    def on_step(self, result: StepResult) -> None:
        self.shown.on_step(result)
        if self.callback is None:
            return
        try:
            is_asked = self.callback(result.step, result.metrics)
        except Exception as problem:  # whatever it is, what was computed is saved first
            self.problem = problem
            raise RunInterrupted(f"{ASKED_TO_STOP}, which failed") from problem
        if is_asked and result.step + 1 < self.num_steps:
            raise RunInterrupted(ASKED_TO_STOP)

    def on_evaluation(self, step: int, result: EvaluationResult) -> None:
        self.shown.on_evaluation(step, result)

    def on_checkpoint(self, step: int, path: Path) -> None:
        self.shown.on_checkpoint(step, path)

    def on_message(self, message: str) -> None:
        self.shown.on_message(message)


def _records(path: Path) -> list[dict[str, Any]]:
    """The lines of a file that a run begins when it has something to write."""
    return read_jsonl(path) if path.is_file() and path.stat().st_size else []
