"""A run while it goes on, in a few lines of text that fit any width: the latest numbers and the curves behind them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress import Progress, ProgressColumn
from rich.table import Table
from rich.text import Text

from tutelage.report.sparkline import sparkline

__all__ = ["FittedProgress", "RunView", "can_redraw"]

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


@dataclass
class RunView:
    """pass@1, reward, loss, beta and the time split of one run; what a run does not have is left out.

    Renders itself into the width that it is given: a wide one has the range of each curve behind it, a narrow one has
    numbers only. Nothing is said by colour, and a console without unicode gets no curves.

    Fields:
      metrics: a record per step, as in `metrics.jsonl`.
      evaluations: a record per evaluation, as in `evaluations.jsonl`.
    """

    metrics: Sequence[Mapping[str, Any]] = field(default_factory=list)
    evaluations: Sequence[Mapping[str, Any]] = field(default_factory=list)

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
                    low, high = form.format(min(values)), form.format(max(values))
                    curve.append(f"{' ' * (width - len(drawn))} {low} to {high}", style="dim")
            grid.add_row(Text(label), form.format(values[-1]), curve)
        if split is not None:
            grid.add_row("time", *split)
        yield grid

    def _curves(self) -> Iterator[tuple[str, list[float], str]]:
        """Label, finite values, format of every row."""
        names = list(dict.fromkeys(record["name"] for record in self.evaluations))
        for name in names:
            values = [100 * float(record["pass_at_1"]) for record in self.evaluations if record["name"] == name]
            yield ("pass@1" if len(names) == 1 else f"pass@1 {name}"), values, "{:.1f}%"
        for label, key, form in CURVES:
            values = [float(record[key]) for record in self.metrics if _is_finite(record.get(key))]
            if values:
                yield label, values, form

    def _time_split(self) -> tuple[str, str] | None:
        """Seconds of the last step, and the share of each of its parts."""
        if not self.metrics:
            return None
        seconds = {part: float(self.metrics[-1].get(f"seconds_{part}", 0)) for part in PARTS}
        total = sum(seconds.values())
        if not total:
            return None
        shares = [f"{part} {100 * value / total:.0f}%" for part, value in seconds.items() if value >= total / 200]
        return f"{total:.1f}s", "  ".join(shares)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < float("inf")  # which NaN is not
