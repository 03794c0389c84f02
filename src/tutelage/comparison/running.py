"""How are many runs carried out? Each as a process of its own with one thread, as many at once as there are cores.

Two runs of one thread each are done sooner on two cores than one after the other on two threads. A run that fails does
not stop the others. Runs that were begun are continued from their checkpoint, so the command may be killed at any time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from tutelage.config import load_config
from tutelage.errors import OutputExistsError
from tutelage.locks import hold, release
from tutelage.report import read_jsonl
from tutelage.report.live import FittedProgress, FollowedRun, RunView, can_redraw
from tutelage.training import named_checkpoints
from tutelage.training.interruption import Interruption

if sys.platform != "win32":
    import fcntl

__all__ = ["Job", "default_workers", "is_finished", "locked", "records_of", "run_jobs"]

# On Linux the kernel ends a run when the process that started it dies, however it dies.
CHILD = """import ctypes, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
from tutelage.cli import main
main()"""
SECONDS_BETWEEN_LOOKS = 0.25
SECONDS_TO_SAVE = 120  # given to a run that was asked to stop
MAX_BARS = 10  # with more runs than this only those in progress are shown
VIEW_HEIGHT = 7  # lines of one run's curves, its name among them
STEPS_BETWEEN_LINES = 10  # where there is no terminal


@dataclass(frozen=True)
class Job:
    """One run: `tutelage train` of a run file.

    Fields:
      name: in the display.
      run_file: whose `output` is `folder`.
      folder, log: of the run, and what it prints.
      num_steps: of the run.
      accept: what may have changed since a run began, see `fingerprints.INPUTS`.
    """

    name: str
    run_file: Path
    folder: Path
    log: Path
    num_steps: int
    accept: Sequence[str] = ()

    @property
    def command(self) -> list[str]:
        """What is executed; a run that was begun is resumed. The folder may have been moved since the run file was
        written."""
        here = f"output={json.dumps(str(self.folder), ensure_ascii=False)}"
        words = ["--set", here]
        if self.folder.exists():
            words += ["--resume", *(word for name in self.accept for word in ("--accept", name))]
        return [sys.executable, "-c", CHILD, "train", str(self.run_file), *words]


def default_workers() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_jobs(jobs: Sequence[Job], console: Console, *, workers: int) -> dict[str, int]:
    """Run what is not finished yet, and show how far it is.

    Returns:
      name -> exit code of every job that failed.
    Raises:
      RunInterrupted: Ctrl-C or SIGTERM; every run was asked to save itself and has ended.
    """
    waiting = [job for job in jobs if not is_finished(job.folder, job.num_steps)]
    running = dict[str, tuple[Job, subprocess.Popen[bytes]]]()
    failed = dict[str, int]()
    display = _Display(jobs, waiting, console)
    with Interruption(), display.live:
        try:
            while waiting or running:
                while waiting and len(running) < workers:
                    job = waiting.pop(0)
                    running[job.name] = (job, _start(job))
                    display.started(job)
                for job, process in list(running.values()):
                    code = process.poll()
                    display.looked_at(job)
                    if code is not None:
                        del running[job.name]
                        failed |= {job.name: code} if code else {}
                        display.ended(job, code)
                time.sleep(SECONDS_BETWEEN_LOOKS)
        finally:
            _stop([process for _, process in running.values()])
    return failed


def is_finished(folder: Path, num_steps: int) -> bool:
    """In the folder of a run its last step is saved, and every evaluation set was judged after it."""
    if not (folder / "config.toml").is_file():
        return False
    last_checkpoint = named_checkpoints(folder / "checkpoints").get("last")
    if last_checkpoint is None or last_checkpoint.name != f"step-{num_steps:06d}":
        return False
    evaluation = load_config(folder / "config.toml").evaluation
    last = [record for record in records_of(folder / "evaluations.jsonl") if record["step"] == num_steps]
    return len(last) >= len(evaluation.sets) * (2 if evaluation.greedy else 1)


def records_of(path: Path) -> list[dict[str, Any]]:
    """The lines of a JSON-lines file so far; none where it does not exist yet."""
    return read_jsonl(path) if path.exists() and b"\n" in path.read_bytes() else []


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Own a folder of runs. Another command is refused at once. Runs of one that was killed hold a lock of their own,
    since they may still save themselves, and are waited for.

    Raises:
      OutputExistsError: another command, or a run that it left running, still works there.
    """
    if sys.platform == "win32":  # no such locks: it is for the user not to start two commands
        yield
        return
    hold(folder, "Wait for it to end, or choose another folder.")
    try:
        with _runs_ended(folder):
            yield
    finally:
        release(folder)


@contextmanager
def _runs_ended(folder: Path) -> Iterator[None]:
    """Wait for runs that another command left running; runs started inside are the same for the next command."""
    with (folder / ".runs.lock").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        deadline = time.monotonic() + SECONDS_TO_SAVE
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise OutputExistsError(
                        f"{folder} is in use by runs that another command left running; two would write into each "
                        "other's files. Wait for them to end, or choose another folder."
                    ) from None
                time.sleep(SECONDS_BETWEEN_LOOKS)
        yield


def _start(job: Job) -> subprocess.Popen[bytes]:
    if job.folder.exists() and not any(job.folder.iterdir()):
        job.folder.rmdir()  # killed before its first file
    job.log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with job.log.open("ab") as log:
        return subprocess.Popen(
            job.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, close_fds=False
        )


def _stop(processes: list[subprocess.Popen[bytes]]) -> None:
    """Ask runs to save themselves, and wait until they have."""
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(SECONDS_TO_SAVE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class _Display:
    """A bar for every run in progress, one for all, and the curves of the runs in progress where there is room.

    Plain lines where there is no terminal that can be redrawn.
    """

    def __init__(self, jobs: Sequence[Job], waiting: Sequence[Job], console: Console) -> None:
        self.console, self.shows_all = console, len(jobs) <= MAX_BARS
        self.progress = Progress(
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(bar_width=10),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}", markup=False),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
        )
        columns = [column for column in self.progress.columns if not isinstance(column, str)]
        self.bars_that_fit = FittedProgress(self.progress, columns, columns[:3])
        self.is_live = can_redraw(console)
        self.live: AbstractContextManager[object] = (
            Live(self, console=console, refresh_per_second=4) if self.is_live else nullcontext()
        )
        self.runs = {job.name: FollowedRun(job.folder) for job in jobs}
        self.views: dict[str, RunView] = {}
        self.bars: dict[str, TaskID] = {}
        left = {job.name for job in waiting}
        for job in jobs:
            is_done = job.name not in left
            self.bars[job.name] = self.progress.add_task(
                job.name, total=job.num_steps, completed=job.num_steps if is_done else 0, start=False,
                visible=self.shows_all, figures="finished earlier" if is_done else "waiting",
            )  # fmt: skip
        self.total = self.progress.add_task(
            "runs", total=len(jobs), completed=len(jobs) - len(left), visible=len(jobs) > 2, figures=""
        )
        self.num_failed = 0
        self.last_line = dict.fromkeys(self.bars, 0)

    def started(self, job: Job) -> None:
        self.progress.start_task(self.bars[job.name])
        self.progress.update(self.bars[job.name], figures="starting", visible=True)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.bars_that_fit
        if self._has_room(options.size.height):
            for run, view in self.views.items():
                yield Text(run, style="bold", no_wrap=True, overflow="ellipsis")
                yield view

    def _has_room(self, height: int) -> bool:
        bars = sum(task.visible for task in self.progress.tasks)
        return bars + VIEW_HEIGHT * len(self.views) < height

    def looked_at(self, job: Job) -> None:
        view = self.runs[job.name].look()
        text, done = _status(view, job.folder)
        self.progress.update(self.bars[job.name], completed=done, figures=text)
        if self.is_live:
            self.views[job.name] = view
        if not self.is_live and done >= self.last_line[job.name] + STEPS_BETWEEN_LINES:
            self.last_line[job.name] = done
            self.say(f"{job.name} step {done}/{job.num_steps}  {text}")

    def ended(self, job: Job, code: int) -> None:
        text = (
            f"failed, exit code {code}" if code else f"finished  {_status(self.runs[job.name].look(), job.folder)[0]}"
        )
        self.num_failed += code != 0
        self.views.pop(job.name, None)
        self.progress.update(self.bars[job.name], figures=text, visible=self.shows_all)
        self.progress.update(self.total, advance=1, figures=f"{self.num_failed} failed" if self.num_failed else "")
        if code or not self.is_live or not self.shows_all:
            self.say(f"{job.name}  {text}")

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)


def _status(view: RunView, run: Path) -> tuple[str, int]:
    """The latest numbers of a run in a few words, and how many steps it has done."""
    if not view.num_steps:
        return ("evaluating the untrained student" if run.exists() else "starting"), 0
    last = view.last_step
    shown = (
        ("loss", last.get("loss"), ".2f"),
        ("reward", last.get("reward"), ".2f"),
        ("pass@1", view.last_pass_at_1, ".1%"),
        ("beta", last.get("blend_mean"), ".2f"),
    )
    parts = [f"{label} {value:{form}}" for label, value, form in shown if isinstance(value, int | float)]
    return "  ".join(parts), view.num_steps
