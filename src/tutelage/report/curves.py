"""What does a run look like?  Six panels on one sheet, from the run's own JSON lines; several runs share the panels.

A figure is derived from those files, so it, and nothing else, may be overwritten.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tutelage.errors import DataError
from tutelage.report import panels
from tutelage.report.records import RunRecords, read_run
from tutelage.report.style import INK, MUTED, TEXT_SIZE, check_figure_format, name_strokes, saved, stroke

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_run", "plot_runs"]

FIGURE_INCHES = (14.0, 7.8)


def plot_run(run_folder: Path) -> Path:
    """Draw one run into `curves.png` in its own folder; see `plot_runs`."""
    return plot_runs({run_folder.resolve().name: run_folder}, run_folder / "curves.png")


def plot_runs(runs: Mapping[str, Path], path: Path) -> Path:
    """Draw runs over one another: pass@1, reward, loss, teacher log-probability, trust region, time or length.

    Thin lines are single steps, thick ones their moving average over a twentieth of the run. A single run shows each
    evaluation set by name and where the time of a step goes, with the steps of a trust region shaded and a dotted line
    where another phase begins; several runs show the mean over the evaluation sets and the response length. Where no
    run has a trust region, the teacher's entropy takes its place. Runs with rewards and without a teacher show prompts
    without spread and the student's entropy in place of the teacher's numbers.

    Args:
      runs: label -> run folder with `metrics.jsonl` and, if the run was evaluated, `evaluations.jsonl`.
      path: a .png, .pdf or .svg file; replaced where it exists.
    Returns:
      The path.
    """
    check_figure_format(path)
    if not runs:
        raise DataError("Got no run to draw; expected at least one. Name a folder that has a metrics.jsonl.")
    return saved(_draw({label: read_run(folder) for label, folder in runs.items()}), path)


def _draw(runs: Mapping[str, RunRecords]) -> Figure:
    from matplotlib.figure import Figure  # here, so that importing the package does not pay for matplotlib

    figure = Figure(figsize=FIGURE_INCHES, layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.1)  # type: ignore[union-attr, call-arg]
    grid = figure.add_gridspec(2, 3, wspace=0.06, hspace=0.06)
    strokes = {label: stroke(index) for index, label in enumerate(runs)}
    only_run = next(iter(runs.values())) if len(runs) == 1 else None

    evaluation, reward, loss = (figure.add_subplot(grid[0, column]) for column in range(3))
    if only_run is not None:
        panels.draw_pass_at_1_of_sets(evaluation, only_run)
    else:
        panels.draw_pass_at_1_of_runs(evaluation, runs, strokes)
    panels.draw_metric(reward, runs, strokes, "reward", "Reward", "mean over the rollouts of a step")
    panels.draw_metric(loss, runs, strokes, "loss", "Loss", "divergence from the target, nats per token")

    support = figure.add_subplot(grid[1, 0])
    # A run without a teacher has no numbers of one; what decides there is whether its rewards differ.
    if panels.has_metric(runs, "zero_spread_share") and not panels.has_metric(runs, "teacher_logprob"):
        subtitle = "share of prompts whose answers are all worth the same"
        panels.draw_metric(support, runs, strokes, "zero_spread_share", "Prompts without spread", subtitle)
    else:
        panels.draw_metric(
            support, runs, strokes, "teacher_logprob", "Teacher support", "log q of the sampled tokens, nats per token"
        )
    if any(panels.has_trust_region(run) for run in runs.values()):
        halves = grid[1, 1].subgridspec(2, 1, hspace=0.02)
        upper, middle = figure.add_subplot(halves[0]), figure.add_subplot(halves[1])
        panels.draw_trust_region(upper, middle, runs, strokes)
        upper.tick_params(labelbottom=False)
    else:
        middle = figure.add_subplot(grid[1, 1])
        has_teacher = panels.has_metric(runs, "teacher_entropy") or not panels.has_metric(runs, "student_entropy")
        whose = "teacher" if has_teacher else "student"
        subtitle = "on the visited prefixes, nats per token"
        panels.draw_metric(middle, runs, strokes, f"{whose}_entropy", f"{whose.capitalize()} entropy", subtitle)
    last = figure.add_subplot(grid[1, 2])
    if only_run is not None and panels.has_seconds(only_run):
        panels.draw_seconds(last, only_run)
    else:
        panels.draw_metric(last, runs, strokes, "response_tokens", "Response length", "tokens, mean over the rollouts")

    _align_steps(figure.axes)
    for axes in (support, middle, last):
        axes.set_xlabel("optimiser step", color=MUTED, fontsize=TEXT_SIZE)
    if only_run is not None:
        for axes in figure.axes:
            panels.shade_trust_region(axes, only_run)
            panels.mark_phases(axes, only_run)
        figure.suptitle(next(iter(runs)), x=0.01, ha="left", fontsize=13, color=INK, parse_math=False)
    else:
        name_strokes(figure, strokes)
    return figure


def _align_steps(all_axes: list[Axes]) -> None:
    """One range of steps for all panels, so that they can be compared down a column."""
    from matplotlib.ticker import MaxNLocator

    ends = [axes.get_xlim() for axes in all_axes if axes.lines or axes.collections]
    low, high = min((low for low, _ in ends), default=0.0), max((high for _, high in ends), default=1.0)
    widening = max(0.0, 1 - (high - low)) / 2  # a run of one step still gets a whole step of room
    for axes in all_axes:
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1, steps=[1, 2, 2.5, 5, 10]))
        axes.set_xlim(low - widening, high + widening)
