"""The panels of a run sheet: each function draws one question about one or several runs on the axes it is given.

Runs arrive as label -> records, strokes as label -> how that run is drawn everywhere on the sheet.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from tutelage.report.plain import as_label
from tutelage.report.records import Columns, Curve, RunRecords, curve, greedy_names, mean_and_spread
from tutelage.report.style import MUTED, SHADE, TEXT_SIZE, Stroke, dress, label_right, stroke
from tutelage.report.thinning import extreme_places, extremes, gathered, moving_median, smoothed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "draw_metric",
    "draw_pass_at_1_of_runs",
    "draw_pass_at_1_of_sets",
    "draw_seconds",
    "draw_trust_region",
    "has_metric",
    "has_seconds",
    "has_trust_region",
    "draw_steps",
    "mark_phases",
    "shade_trust_region",
]

Runs = Mapping[str, RunRecords]
Strokes = Mapping[str, Stroke]

MAX_MARKS = 100  # lines where a phase begins, and stretches that are shaded; more would hide the curves
PHASES = {"seconds_rollout": "rollout", "seconds_score": "score", "seconds_update": "update"}


def draw_metric(axes: Axes, runs: Runs, strokes: Strokes, key: str, title: str, subtitle: str) -> None:
    """A metric per step: thin the steps, thick their centred moving average."""
    dress(axes, title, subtitle)
    for label, run in runs.items():
        _line(axes, curve(run.metrics, key), strokes[label], len(runs))
    _say_if_empty(axes)


def draw_pass_at_1_of_sets(axes: Axes, run: RunRecords) -> None:
    """pass@1 of one run, a line for every evaluation set, with its interval."""
    dress(axes, "pass@1", "share correct, 95% interval over problems")
    labels = []
    for index, (name, columns) in enumerate(run.evaluations.items()):
        line = curve(columns, "pass_at_1")
        if not len(line):
            continue
        _points_with_bars(axes, columns, stroke(index), shift=0.0)
        labels.append((line.values[-1], name, stroke(index).color))
    label_right(axes, labels)
    _say_if_empty(axes)


def draw_pass_at_1_of_runs(axes: Axes, runs: Runs, strokes: Strokes) -> None:
    """pass@1 of several runs: with intervals if there is one evaluation set, else the plain mean over the sets.

    A step enters the mean only where all sets of that run were evaluated; the sets' intervals are not those of a mean,
    so none are drawn.
    """
    names = sorted({name for run in runs.values() for name in set(run.evaluations) - greedy_names(run.evaluations)})
    if len(names) < 2:
        dress(
            axes,
            "pass@1",
            f"share correct, 95% interval over problems{''.join(f', {as_label(name)}' for name in names)}",
        )
    else:
        dress(axes, "pass@1", f"share correct, mean of {len(names)} sets")
    last_step = max(
        (look.steps.max(initial=0) for run in runs.values() for look in run.evaluations.values()), default=0
    )
    for index, (label, run) in enumerate(runs.items()):
        if len(names) == 1:
            shift = (index - (len(runs) - 1) / 2) * 0.006 * last_step  # side by side, so that no bar hides another
            _points_with_bars(axes, run.evaluations.get(names[0]), strokes[label], shift)
        elif names and all(name in run.evaluations for name in names):
            line, _ = mean_and_spread([curve(run.evaluations[name], "pass_at_1") for name in names])
            _points(axes, extremes(line), strokes[label], shift=0.0)
    _say_if_empty(axes)


def draw_trust_region(blend_axes: Axes, kl_axes: Axes, runs: Runs, strokes: Strokes) -> None:
    """Above, how much of the teacher is in the policy; below, how much of the KL budget that takes."""
    shading = "; KL radius > 0 shaded" if len(runs) == 1 else ""
    dress(blend_axes, "Trust region", f"teacher share of the policy{shading}")
    dress(kl_axes, "", "KL(policy || student) used, and budget (dotted), nats")
    for label, run in runs.items():
        _line(blend_axes, curve(run.metrics, "blend_mean"), strokes[label], len(runs))
        _line(kl_axes, curve(run.metrics, "kl_used"), strokes[label], len(runs))
        budget = extremes(curve(run.metrics, "kl_radius"))
        color = strokes[label].color if len(runs) > 1 else MUTED
        kl_axes.plot(budget.steps, budget.values, color=color, linestyle=":", linewidth=1.4)
    for axes in (blend_axes, kl_axes):
        axes.set_ylim(bottom=0)
        axes.locator_params(axis="y", nbins=4)


def draw_seconds(axes: Axes, run: RunRecords) -> None:
    """Where the wall-clock time of a step goes, one phase stacked on another.

    Moving medians: they pass over a single slow step, and keep the edge at the end of a warm-up that a mean would blur.
    """
    dress(axes, "Time per step", "seconds, by phase")
    parts = {name: run.metrics[key] for key, name in PHASES.items()}
    is_timed = np.any([np.isfinite(seconds) for seconds in parts.values()], axis=0)
    steps = gathered(run.metrics.steps[is_timed])
    floor, labels = np.zeros(len(steps)), []
    for index, (name, seconds) in enumerate(parts.items()):
        if not np.isfinite(seconds).any():
            continue
        there = np.nan_to_num(seconds[is_timed])  # a phase that a step lacks took no time: a blend scores as it samples
        ceiling = floor + moving_median(gathered(there, by_median=True))
        color = stroke(index).color
        axes.fill_between(steps, floor, ceiling, facecolor=color, alpha=0.7, linewidth=0)
        labels.append(((floor[-1] + ceiling[-1]) / 2, name, color))
        floor = ceiling
    axes.set_ylim(bottom=0)
    label_right(axes, labels)


def has_metric(runs: Runs, key: str) -> bool:
    """Any of the runs recorded it."""
    return any(len(curve(run.metrics, key)) for run in runs.values())


def has_seconds(run: RunRecords) -> bool:
    """The run recorded the time of any phase, for more than the one step that cannot be drawn as an area."""
    return any(len(curve(run.metrics, key)) > 1 for key in PHASES)


def has_trust_region(run: RunRecords) -> bool:
    """The run had a KL budget above 0 at any step."""
    return bool((curve(run.metrics, "kl_radius").values > 0).any())


def shade_trust_region(axes: Axes, run: RunRecords) -> None:
    """Shade the steps whose KL radius is above 0."""
    radius = curve(run.metrics, "kl_radius")
    if np.count_nonzero(np.diff(radius.values > 0)) > MAX_MARKS:
        radius = extremes(radius)
    is_on = radius.values > 0
    for part in np.split(np.arange(len(radius)), np.flatnonzero(np.diff(is_on)) + 1):
        if len(part) and is_on[part[0]]:
            axes.axvspan(radius.steps[part[0]] - 0.5, radius.steps[part[-1]] + 0.5, color=SHADE, linewidth=0, zorder=0)


def mark_phases(axes: Axes, run: RunRecords) -> None:
    """A dotted line before every step at which another phase of the run begins."""
    begins = run.metrics.steps[1:][np.diff(run.metrics["phase"]) != 0]
    for step in begins if len(begins) <= MAX_MARKS else ():
        axes.axvline(step - 0.5, color=MUTED, linewidth=1, linestyle=":", zorder=1)


def draw_steps(axes: Axes, line: Curve, how: Stroke, num_runs: int) -> None:
    """Single steps as a thin line; where they are too many, through the lowest and the highest of each stretch."""
    line = extremes(line)
    axes.plot(line.steps, line.values, color=how.color, linewidth=0.8, alpha=0.3 / num_runs**0.5)


def _line(axes: Axes, line: Curve, how: Stroke, num_runs: int) -> None:
    draw_steps(axes, line, how, num_runs)
    marker = how.marker if len(line) == 1 else ""
    line = smoothed(line)
    axes.plot(line.steps, line.values, color=how.color, linestyle=how.linestyle, linewidth=2, marker=marker)


def _points(axes: Axes, line: Curve, how: Stroke, shift: float) -> None:
    axes.plot(
        line.steps + shift, line.values, color=how.color, linestyle=how.linestyle, linewidth=1.8,
        marker=how.marker, markersize=4.5, markeredgecolor="white", markeredgewidth=0.6,
    )  # fmt: skip


def _points_with_bars(axes: Axes, looks: Columns | None, how: Stroke, shift: float) -> None:
    if looks is None:
        return
    line = curve(looks, "pass_at_1")
    shown = np.isin(looks.steps, line.steps[extreme_places(line.values)])
    ends = np.isfinite(looks["pass_at_1_low"]) & np.isfinite(looks["pass_at_1_high"]) & shown
    axes.vlines(
        looks.steps[ends] + shift, looks["pass_at_1_low"][ends], looks["pass_at_1_high"][ends], color=how.color,
        linewidth=1.4, alpha=0.45,
    )  # fmt: skip
    _points(axes, extremes(line), how, shift)


def _say_if_empty(axes: Axes) -> None:
    if not any(len(line.get_xdata()) for line in axes.lines):  # type: ignore[arg-type]
        axes.text(
            0.5,
            0.5,
            "not recorded",
            transform=axes.transAxes,
            ha="center",
            va="center",
            color=MUTED,
            fontsize=TEXT_SIZE,
        )
        axes.set_yticks([])
