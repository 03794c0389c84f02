"""A run in progress, in a few lines of text that fit any width: the latest numbers and their curves."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress import Progress, ProgressColumn
from rich.table import Table
from rich.text import Text

from tutelage.report.lines import FollowedFile
from tutelage.report.plain import in_line
from tutelage.report.records import EVALUATIONS_FILE, METRICS_FILE, number_of
from tutelage.report.sparkline import sparkline

__all__ = ["FittedProgress", "FollowedRun", "RunView", "can_redraw"]

# Label, key of metrics.jsonl, format.
CURVES = (("reward", "reward", "{:.2f}"), ("loss", "loss", "{:.3f}"), ("beta", "blend_mean", "{:.2f}"))
PARTS = ("rollout", "score", "verify", "loss", "update")  # of a step's time, in their order
LABEL_WIDTH, VALUE_WIDTH, RANGE_WIDTH = 14, 7, 18
NARROWEST_CURVE, WIDEST_CURVE = 8, 60


def can_redraw(console: Console) -> bool:
    """A terminal that lines can be overwritten in; elsewhere (pipes, files, dumb terminals) plain lines are printed."""
    return console.is_terminal and not console.is_dumb_terminal


@dataclass(frozen=True)
class FittedProgress:
    """Progress bars that leave out what a narrow terminal has no room for; decided anew whenever they are drawn.

    Fields:
      progress: whose columns are set.
      wide, narrow: columns from `room` columns of text on, and below.
    """

    progress: Progress
    wide: Sequence[ProgressColumn]
    narrow: Sequence[ProgressColumn]
    room: int = 72

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        self.progress.columns = tuple(self.wide if options.max_width >= self.room else self.narrow)
        yield self.progress


class RunView:
    """pass@1, reward, loss, beta and the time split of one run; what a run does not have is left out.

    It renders into the width that it is given: a wide display has the range after each curve, a narrow one has numbers
    only. No information is in colour alone, and a console without unicode gets no curves. Of past steps only the
    numbers of the curves are kept.

    Args:
      metrics: a record per step, as in `metrics.jsonl`.
      evaluations: a record per evaluation, as in `evaluations.jsonl`.
    """

    def __init__(
        self, metrics: Iterable[Mapping[str, Any]] = (), evaluations: Iterable[Mapping[str, Any]] = ()
    ) -> None:
        self.num_steps = 0
        self.last_step: Mapping[str, Any] = {}
        self.last_pass_at_1: float | None = None
        self._values = {key: array("d") for _, key, _ in CURVES}
        self._pass_at_1: dict[str, array[float]] = {}
        for record in metrics:
            self.add_step(record)
        for record in evaluations:
            self.add_evaluation(record)

    def add_step(self, record: Mapping[str, Any]) -> None:
        """One step more."""
        self.num_steps += 1
        self.last_step = record
        for key, values in self._values.items():
            _add(values, record.get(key))

    def add_evaluation(self, record: Mapping[str, Any]) -> None:
        """One evaluation more."""
        values = self._pass_at_1.setdefault(str(record.get("name", "")), array("d"))
        _add(values, record.get("pass_at_1"))
        if len(values):
            self.last_pass_at_1 = values[-1]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        rows = list(self._curves())
        split = self._time_split()
        if not rows and split is None:
            return
        label_width = min(LABEL_WIDTH, max(len(label) for label, _, _ in rows) if rows else len("time"))
        left = options.max_width - label_width - VALUE_WIDTH - 2
        has_range = left >= NARROWEST_CURVE * 2 + RANGE_WIDTH
        width = min(WIDEST_CURVE, left - (RANGE_WIDTH + 1 if has_range else 0))
        grid = Table.grid(padding=(0, 1, 0, 0))
        grid.add_column(width=label_width, no_wrap=True, overflow="ellipsis")
        grid.add_column(width=VALUE_WIDTH, no_wrap=True, justify="right")
        grid.add_column(overflow="fold")
        for label, values, form in rows:
            curve = Text()
            if width >= NARROWEST_CURVE and not options.ascii_only:
                drawn = sparkline(values, width)
                curve.append(drawn, style="cyan")
                if has_range and drawn:
                    low, high = form.format(values.min()), form.format(values.max())
                    curve.append(f"{' ' * (width - len(drawn))} {low} to {high}", style="dim")
            grid.add_row(Text(label), form.format(values[-1]), curve)
        if split is not None:
            grid.add_row("time", *split)
        yield grid

    def _curves(self) -> Iterator[tuple[str, np.ndarray[Any, np.dtype[np.float64]], str]]:
        """Label, finite values, format of every row."""
        for name, found in self._pass_at_1.items():
            if len(found):
                yield (
                    ("pass@1" if len(self._pass_at_1) == 1 else f"pass@1 {in_line(name)}"),
                    100 * np.array(found),
                    "{:.1f}%",
                )
        for label, key, form in CURVES:
            if len(self._values[key]):
                yield label, np.array(self._values[key]), form

    def _time_split(self) -> tuple[str, str] | None:
        """Seconds of the last step, and the share of each of its parts."""
        numbers = {part: number_of(self.last_step.get(f"seconds_{part}", 0.0)) for part in PARTS}
        seconds = {part: value for part, value in numbers.items() if value > 0}  # which NaN is not
        total = sum(seconds.values())
        if not total:
            return None
        shares = [f"{part} {100 * value / total:.0f}%" for part, value in seconds.items() if value >= total / 200]
        return f"{total:.1f}s", "  ".join(shares)


class FollowedRun:
    """A view of a run that another process writes; every look reads what was added to its files."""

    def __init__(self, folder: Path) -> None:
        self._metrics = FollowedFile(folder / METRICS_FILE)
        self._evaluations = FollowedFile(folder / EVALUATIONS_FILE)
        self._view = RunView()

    def look(self) -> RunView:
        """The view with what was written since the last look."""
        is_new, metrics = self._metrics.news()
        if is_new:  # a run that is resumed takes back what it wrote after its checkpoint
            self._evaluations = FollowedFile(self._evaluations.path)
            self._view = RunView()
        _, evaluations = self._evaluations.news()
        for record in metrics:
            self._view.add_step(record)
        for record in evaluations:
            self._view.add_evaluation(record)
        return self._view


def _add(values: array[float], value: Any) -> None:
    number = number_of(value)
    if number == number:  # which NaN is not
        values.append(number)
