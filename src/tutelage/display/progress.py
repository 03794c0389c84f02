"""The display of a run in progress: curves in a terminal or a notebook, plain lines elsewhere."""

from __future__ import annotations

import io
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from tutelage.display.console import TextConsole, WatchedConsole, in_notebook
from tutelage.evaluation import EvaluationResult
from tutelage.report.live import FittedProgress, RunView, can_redraw
from tutelage.training import Observer
from tutelage.types import StepResult

__all__ = ["LiveObserver", "NotebookObserver", "PlainObserver", "figures", "observer_for"]

SECONDS_BETWEEN_DRAWINGS = 0.5  # of a notebook
NOTEBOOK_WIDTH = 100

# Name shown, metric, format: the few numbers that tell at a glance whether a run is healthy.
SHOWN = (
    ("loss", "loss", "{:.3f}"),
    ("reward", "reward", "{:.2f}"),
    ("beta", "blend_mean", "{:.2f}"),
    ("teacher", "teacher_logprob", "{:.2f}"),
    ("length", "response_tokens", "{:.0f}"),
    ("tok/s", "tokens_per_second", "{:.0f}"),
)

# Of these, the ones that have no curve of their own in a live display.
BELOW = ("teacher_logprob", "response_tokens", "tokens_per_second")


def figures(metrics: dict[str, float], pass_at_1: float | None) -> str:
    """The shown numbers of one step in one line."""
    parts = [f"{label} {form.format(metrics[name])}" for label, name, form in SHOWN if name in metrics]
    if pass_at_1 is not None:
        parts.insert(2, f"pass@1 {100 * pass_at_1:.1f}%")
    return "  ".join(parts)


class PlainObserver(Observer):
    """One line per event; for logs and pipes."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.console = WatchedConsole()
        self.num_steps = 0
        self.pass_at_1: float | None = None
        self._started, self._first_step = time.perf_counter(), 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def on_start(self, step: int, num_steps: int) -> None:
        self.num_steps, self._first_step, self._started = num_steps, step, time.perf_counter()
        if step:
            self.say(f"resuming at step {step} of {num_steps}")

    def on_step(self, result: StepResult) -> None:
        done = result.step + 1
        left = (time.perf_counter() - self._started) / (done - self._first_step) * (self.num_steps - done)
        self.say(f"step {done}/{self.num_steps}  {self._numbers(result)}  left {left:.0f}s")

    def on_evaluation(self, step: int, result: EvaluationResult) -> None:
        self.pass_at_1 = result.pass_at_1
        low, high = result.pass_at_1_interval
        self.say(
            f"evaluation at step {step}: {result.name} pass@1 {100 * result.pass_at_1:.1f}% "
            f"(95% {100 * low:.1f} to {100 * high:.1f}), cut {100 * result.truncation_rate:.0f}%, "
            f"{result.mean_response_tokens:.0f} tokens, {result.seconds:.1f}s"
        )

    def _numbers(self, result: StepResult) -> str:
        numbers = figures(result.metrics, self.pass_at_1)
        return numbers if result.phase is None else f"{result.phase}  {numbers}"

    def on_checkpoint(self, step: int, path: Path) -> None:
        self.say(f"checkpoint {path}")

    def on_message(self, message: str) -> None:
        self.say(message)

    def say(self, text: str) -> None:
        """Print one line."""
        self.console.say(text)


class LiveObserver(PlainObserver):
    """A progress bar above the curves so far; evaluations and checkpoints scroll by above both."""

    def __init__(self, name: str, console: WatchedConsole | None = None) -> None:
        super().__init__(name)
        if console is not None:
            self.console = console
        self.progress = Progress(console=self.console)
        self.task = self.progress.add_task(name, total=None)
        self.numbers = Text(no_wrap=True, overflow="ellipsis")
        self.view = RunView()
        title, count = TextColumn("{task.description}", style="bold", markup=False), MofNCompleteColumn()
        clock = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
        bars = FittedProgress(self.progress, (title, BarColumn(), count, *clock), (title, BarColumn(10), count))
        shown = Group(bars, self.view, self.numbers)
        self.live = Live(shown, console=self.console, refresh_per_second=4)

    def __enter__(self) -> Self:
        self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.live.stop()

    def on_start(self, step: int, num_steps: int) -> None:
        super().on_start(step, num_steps)
        self.progress.update(self.task, total=num_steps, completed=step)

    def on_step(self, result: StepResult) -> None:
        self.progress.update(self.task, completed=result.step + 1)
        self.view.add_step(result.metrics)
        rest = figures({name: result.metrics[name] for name in BELOW if name in result.metrics}, None)
        self.numbers.plain = rest if result.phase is None else f"{result.phase}  {rest}"

    def on_evaluation(self, step: int, result: EvaluationResult) -> None:
        super().on_evaluation(step, result)
        self.view.add_evaluation({"name": result.name, "pass_at_1": result.pass_at_1})


class NotebookObserver(PlainObserver):
    """One output of a notebook's cell, drawn anew: how far the run is, its curves, and a line per event below."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.view, self.lines, self.where = RunView(), list[str](), name
        self._handle: Any = None
        self._drawn = 0.0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._draw()

    def on_start(self, step: int, num_steps: int) -> None:
        super().on_start(step, num_steps)
        self._draw()

    def on_step(self, result: StepResult) -> None:
        self.view.add_step(result.metrics)
        self.where = f"{self.name}: step {result.step + 1}/{self.num_steps}  {self._numbers(result)}"
        if time.perf_counter() - self._drawn >= SECONDS_BETWEEN_DRAWINGS:
            self._draw()

    def on_evaluation(self, step: int, result: EvaluationResult) -> None:
        self.view.add_evaluation({"name": result.name, "pass_at_1": result.pass_at_1})
        super().on_evaluation(step, result)

    def say(self, text: str) -> None:
        """Add a line, and draw."""
        self.lines.append(text)
        self._draw()

    def _draw(self) -> None:
        from IPython.display import display

        console = TextConsole(file=io.StringIO(), width=NOTEBOOK_WIDTH)
        with console.capture() as shown:
            console.say(self.where)
            console.print(self.view)
            for line in self.lines:
                console.say(line)
        self._drawn = time.perf_counter()
        content = {"text/plain": shown.get()}
        if self._handle is None:
            self._handle = display(content, raw=True, display_id=True)
        else:
            self._handle.update(content, raw=True)


def observer_for(name: str) -> PlainObserver:
    """A live display in a notebook, and in a terminal that can be drawn in; plain lines otherwise."""
    if in_notebook():
        return NotebookObserver(name)
    return LiveObserver(name) if can_redraw(TextConsole()) else PlainObserver(name)
