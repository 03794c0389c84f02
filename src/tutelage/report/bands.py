"""How do methods compare over seeds? Curves with bands, and a sweep's grid as lines, from the files of runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tutelage.report.plain import as_label
from tutelage.report.records import (
    Curve,
    RunRecords,
    curve,
    evaluation_curve,
    greedy_names,
    mean_and_spread,
    pass_at_1_curve,
    read_run,
)
from tutelage.report.style import INK, MUTED, TEXT_SIZE, Stroke, dress, name_strokes, saved, stroke
from tutelage.report.thinning import extreme_places

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Point", "plot_methods", "plot_sweep"]

BAND_ALPHA = 0.15


class Point(NamedTuple):
    """A number over seeds: its mean, and its standard deviation (0 where there is one seed)."""

    mean: float
    spread: float


def plot_methods(methods: Mapping[str, Sequence[Path]], path: Path) -> Path:
    """Draw methods against the step: pass@1, reward, teacher log-probability; mean over seeds, band ± 1 deviation.

    Where a teacher read the answers to evaluation problems, KL and overlap on these as well.

    Args:
      methods: name -> run folders, one per seed; those of a method with none are left out.
      path: a .png; replaced where it exists.
    """
    from matplotlib.figure import Figure  # here, so that importing the package does not pay for matplotlib

    runs = {name: [read_run(folder) for folder in folders] for name, folders in methods.items() if folders}
    strokes = {name: stroke(place) for place, name in enumerate(runs)}
    panels: list[tuple[str, str, Callable[[RunRecords], Curve]]] = [
        ("pass@1", "share correct, sampled", lambda run: pass_at_1_curve(run.evaluations)),
        ("pass@1, greedy", "share correct", lambda run: pass_at_1_curve(run.evaluations, is_greedy=True)),
        ("Reward", "right training rollouts, of the policy", lambda run: curve(run.metrics, "reward")),
        ("Teacher support", "log q of the sampled tokens, nats", lambda run: curve(run.metrics, "teacher_logprob")),
    ]
    if not any(greedy_names(run.evaluations) for group in runs.values() for run in group):
        del panels[1]
    of_reading: list[tuple[str, str, Callable[[RunRecords], Curve]]] = [
        (
            "KL to the teacher",
            "own held-out answers, nats",
            lambda run: evaluation_curve(run.evaluations, "reverse_kl"),
        ),
        ("Overlap", "of the top K, held out", lambda run: evaluation_curve(run.evaluations, "support_overlap")),
    ]
    panels += [panel for panel in of_reading if any(len(panel[2](run)) for group in runs.values() for run in group)]
    figure = Figure(figsize=(4.6 * len(panels), 4.4), layout="constrained", facecolor="white")
    for place, (title, subtitle, curve_of) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), place + 1)
        dress(axes, title, subtitle)
        for name, group in runs.items():
            _band(axes, [line for line in map(curve_of, group) if len(line)], strokes[name])
        axes.set_xlabel("optimiser step", color=MUTED, fontsize=TEXT_SIZE)
    name_strokes(figure, strokes, "mean over seeds, band: one standard deviation")
    return saved(figure, path)


def plot_sweep(
    panels: Mapping[str, Mapping[str, Mapping[object, Point]]],
    baselines: Mapping[str, Point],
    path: Path,
    *,
    x_label: str,
    title: str = "",
) -> Path:
    """Draw a sweep: one panel per measure, its grid as lines over x, the baseline as a level with its band.

    Args:
      panels: measure -> line -> x -> point; numbers of x are placed by size and evenly, as budgets grow by factors.
      baselines: measure -> point, for those that have one.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.4 * len(panels), 4.4), layout="constrained", facecolor="white")
    strokes = {
        line: stroke(place + 1) for place, line in enumerate(dict.fromkeys(x for p in panels.values() for x in p))
    }
    for place, (measure, lines) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), place + 1)
        dress(axes, measure, "mean over seeds, bars: one standard deviation")
        values = list(dict.fromkeys(x for points in lines.values() for x in points))
        if all(isinstance(x, int | float) for x in values):
            values.sort(key=lambda x: float(str(x)))
        if measure in baselines:
            mean, spread = baselines[measure]
            axes.axhspan(mean - spread, mean + spread, color=MUTED, alpha=BAND_ALPHA, linewidth=0)
            axes.axhline(mean, color=INK, linestyle=(0, (4, 2)), linewidth=1.4)
        for number, (line, points) in enumerate(lines.items()):
            shift = (number - (len(lines) - 1) / 2) * 0.04  # side by side, so that no bar hides another
            there = [values.index(x) + shift for x in points]
            means, spreads = zip(*points.values(), strict=True)
            how = strokes[line]
            axes.errorbar(
                there, means, yerr=spreads, color=how.color, linestyle=how.linestyle, marker=how.marker, markersize=5,
                linewidth=1.8, elinewidth=1.2,
            )  # fmt: skip
        axes.set_xticks(range(len(values)), [as_label(f"{x}") for x in values])
        axes.set_xlabel(x_label, color=MUTED, fontsize=TEXT_SIZE)
    name_strokes(figure, strokes, title)
    return saved(figure, path)


def _band(axes: Axes, lines: Sequence[Curve], how: Stroke) -> None:
    if not lines:
        return
    mean, spread = mean_and_spread(lines)
    places = extreme_places(mean.values)
    steps, values, spread = mean.steps[places], mean.values[places], spread[places]
    axes.fill_between(steps, values - spread, values + spread, color=how.color, alpha=BAND_ALPHA, linewidth=0)
    marker = how.marker if len(mean) < 30 else ""
    axes.plot(steps, values, color=how.color, linestyle=how.linestyle, linewidth=1.8, marker=marker, ms=4.5)
