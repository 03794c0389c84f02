"""On which dashboards is a run shown?  TensorBoard, Weights & Biases and trackio, each through its own library.

A tracker gets the numbers of `metrics.jsonl` under the same names, and those of `evaluations.jsonl` as SET/NAME. The
run's files stay the record: a tracker that fails is reported once and dropped, and the run goes on. The libraries are
optional, and imported when a run that uses them begins.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

from tutelage.errors import ConfigurationError
from tutelage.evaluation import EvaluationResult
from tutelage.files import write_whole
from tutelage.training.observer import Observer
from tutelage.training.run_files import RunFolder
from tutelage.types import StepResult

__all__ = ["TRACKERS", "RunLabel", "TrackedRun", "Tracker", "Tracking", "chosen_trackers", "evaluation_numbers"]

AUTO = "auto"
IDENTITY_FILE = "trackers.json"


@dataclass(frozen=True)
class RunLabel:
    """What a run is called.

    Fields:
      name, project: of the run, and where it is filed.
      settings: the run file as resolved.
    """

    name: str
    project: str = "tutelage"
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker knows about the run that it shows.

    Fields:
      folder, label: of the run.
      step, is_resumed: where it begins.
    """

    folder: Path
    label: RunLabel
    step: int
    is_resumed: bool

    @property
    def identity(self) -> str:
        """The run's short id. Not from the seed: runs with equal seeds are several.

        A resumed run has the same one, and so has one that was moved. A copy is another run.
        """
        path, here = self.folder / IDENTITY_FILE, str(self.folder.resolve())
        noted = _identity_in(self.folder)
        was = noted.get("folder", here)
        if "id" not in noted or (was != here and _identity_in(Path(was)).get("id") == noted["id"]):
            noted = {"id": secrets.token_hex(4)}
        if noted != (now := {"id": noted["id"], "folder": here}):
            write_whole(path, json.dumps(now) + "\n")
        return str(noted["id"])


def _identity_in(folder: Path) -> dict[str, Any]:
    path = folder / IDENTITY_FILE
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


class Tracker(ABC):
    """One library; making one opens its run, or continues it.

    What a member says of itself:
      package: what must be installed.
      forgets_on_resume: the numbers of the step at which a run is resumed are dropped, and must be logged again.
    """

    package: ClassVar[str]
    forgets_on_resume: ClassVar[bool] = False

    @abstractmethod
    def __init__(self, run: TrackedRun) -> None: ...

    @abstractmethod
    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Show these numbers at a step; steps never decrease."""

    @abstractmethod
    def close(self, is_whole: bool) -> None:
        """The run has ended; `is_whole`: at its last step."""


class TensorBoard(Tracker):
    """Event files in the run's folder, under tensorboard/."""

    package = "tensorboard"
    forgets_on_resume = True

    def __init__(self, run: TrackedRun) -> None:
        library = importlib.import_module("torch.utils.tensorboard")
        # What was shown from the resumed step on is hidden: the run writes it again.
        self.writer = library.SummaryWriter(
            log_dir=str(run.folder / "tensorboard"), purge_step=run.step if run.is_resumed else None
        )

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, number in numbers.items():
            self.writer.add_scalar(name, number, step)
        self.writer.flush()

    def close(self, is_whole: bool) -> None:
        self.writer.close()


class WeightsAndBiases(Tracker):
    """A run of Weights & Biases. A resumed run goes on where it was; what it writes again there is dropped."""

    package = "wandb"

    def __init__(self, run: TrackedRun) -> None:
        self.run = importlib.import_module("wandb").init(
            project=run.label.project,
            name=run.label.name,
            id=run.identity,
            config=dict(run.label.settings),
            dir=str(run.folder),
            resume="allow",
        )

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self.run.log(dict(numbers), step=step)

    def close(self, is_whole: bool) -> None:
        self.run.finish(exit_code=0 if is_whole else 1)


class Trackio(Tracker):
    """A run of trackio, which knows runs by name: the run's id is part of it. Steps written again are there twice."""

    package = "trackio"

    def __init__(self, run: TrackedRun) -> None:
        self.library = importlib.import_module("trackio")
        self.library.init(
            project=run.label.project,
            name=f"{run.label.name}-{run.identity}",
            config=dict(run.label.settings),
            resume="allow",
        )

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self.library.log(dict(numbers), step=step)

    def close(self, is_whole: bool) -> None:
        self.library.finish()


TRACKERS: dict[str, type[Tracker]] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases, "trackio": Trackio}
"""name in the run file -> tracker"""


def chosen_trackers(names: Sequence[str]) -> dict[str, bool]:
    """The trackers that `logging.trackers` asks for; "auto" is TensorBoard where it is installed.

    Returns:
      name -> whether it was asked for by name, and not found by "auto".
    Raises:
      ConfigurationError: there is no such tracker, or its library is not installed.
    """
    chosen: dict[str, bool] = {}
    for name in names:
        if name != AUTO and name not in TRACKERS:
            raise ConfigurationError(
                f"logging.trackers names {name!r}; expected {AUTO}, {', '.join(TRACKERS)}. Use [] for none."
            )
        if name == AUTO:
            if _is_installed(TensorBoard.package):
                chosen.setdefault("tensorboard", False)
            continue
        if not _is_installed(TRACKERS[name].package):
            raise ConfigurationError(
                f"logging.trackers names {name!r}, but its library is not installed. Install it with "
                f"pip install 'tutelage[{name}]', or leave it out."
            )
        chosen[name] = True
    return chosen


def evaluation_numbers(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line of `evaluations.jsonl` that trackers show: SET/pass_at_1, SET/pass_at_4, and so on."""
    numbers = {key: record[key] for key in ("pass_at_1", "truncation_rate", "mean_response_tokens")}
    numbers |= {key: record[key] for key in ("gained_share", "lost_share", "retained_mass") if key in record}
    numbers |= {f"pass_at_{k}": share for k, share in record["pass_at_k"].items()}
    return {f"{record['name']}/{key}": float(number) for key, number in numbers.items()}


class Tracking(Observer):
    """Passes everything on to another observer, and the numbers to the trackers.

    Args:
      observer: the run's observer without trackers; it gets a message about a tracker that fails.
      chosen: see `chosen_trackers`. One that was asked for must start; one that "auto" found may fail.
      label, is_resumed: see `TrackedRun`.
    """

    def __init__(
        self,
        observer: Observer,
        folder: RunFolder,
        chosen: Mapping[str, bool],
        label: RunLabel,
        is_resumed: bool = False,
    ) -> None:
        self.observer, self.folder, self.chosen = observer, folder, chosen
        self.label, self.is_resumed = label, is_resumed
        self.trackers: dict[str, Tracker] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._on_all(lambda tracker: tracker.close(kind is None))
        self.trackers = {}

    def on_start(self, step: int, num_steps: int) -> None:
        """Open the trackers.

        Raises:
          ConfigurationError: one cannot be opened; nothing has been computed yet.
        """
        run = TrackedRun(self.folder.path, self.label, step, self.is_resumed)
        for name, is_required in self.chosen.items():
            try:
                self.trackers[name] = TRACKERS[name](run)
            except Exception as problem:
                if not is_required:
                    self._give_up(name, problem)
                    continue
                raise ConfigurationError(
                    f"the tracker {name!r} cannot start: {_in_short(problem)}. Correct that (log in, connect) and "
                    f"give the same command again, or do without it: --set 'logging.trackers=[]'."
                ) from problem
        if self.is_resumed:
            for record in self.folder.read("evaluations.jsonl"):
                if record["step"] == step:
                    numbers = evaluation_numbers(record)
                    self._on_all(partial(_log_again, step=step, numbers=numbers))
        self.observer.on_start(step, num_steps)

    def on_step(self, result: StepResult) -> None:
        self._on_all(lambda tracker: tracker.log(result.step, result.metrics))
        self.observer.on_step(result)

    def on_evaluation(self, step: int, result: EvaluationResult) -> None:
        self._on_all(lambda tracker: tracker.log(step, evaluation_numbers(result.to_dict())))
        self.observer.on_evaluation(step, result)

    def on_checkpoint(self, step: int, path: Path) -> None:
        self.observer.on_checkpoint(step, path)

    def on_message(self, message: str) -> None:
        self.observer.on_message(message)

    def _on_all(self, do: Callable[[Tracker], None]) -> None:
        """Do something with every tracker; one that fails is reported once and dropped."""
        for name, tracker in list(self.trackers.items()):
            try:
                do(tracker)
            except Exception as problem:  # a network that is gone, a full disk: whatever it is, the run is worth more
                del self.trackers[name]
                self._give_up(name, problem)

    def _give_up(self, name: str, problem: Exception) -> None:
        self.observer.on_message(
            f"the tracker {name!r} failed ({_in_short(problem)}); the run goes on without it, and "
            f"{self.folder.path / 'metrics.jsonl'} has everything"
        )


def _log_again(tracker: Tracker, step: int, numbers: Mapping[str, float]) -> None:
    if tracker.forgets_on_resume:
        tracker.log(step, numbers)


def _is_installed(package: str) -> bool:
    spec = importlib.util.find_spec(package)
    # A mere folder of that name, such as the wandb/ that runs leave behind, can be imported too, and has no origin.
    return spec is not None and spec.origin is not None


def _in_short(problem: Exception) -> str:
    return f"{type(problem).__name__}: {problem}".splitlines()[0]
