"""The figures of the two probes, after TRB's (arXiv 2605.31159): continuation gains, and support against reward.

They are drawn from the records that `tutelage probe` writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tutelage.report.style import GRID, INK, MUTED, TEXT_SIZE, dress, saved, stroke

__all__ = ["plot_budget", "plot_continuation"]

Records = Sequence[Mapping[str, Any]]
WIDTH_INCHES, HEIGHT_INCHES = 4.8, 3.5
BAR_SHARE = 0.8  # of the distance between two lengths, for the bars of all continuers


def plot_continuation(records: Records, path: Path) -> Path:
    """Bars of the relative success gain by length and continuer, with their intervals (its figure 5).

    Where a gain has no end, since the student is hardly ever right, differences of success are drawn for all.

    Args:
      records: `ContinuationGain`s as dictionaries.
      path: an SVG, PNG or PDF.
    """
    from matplotlib.figure import Figure

    is_relative = all(record["relative_gain_interval"] is not None for record in records)
    key, what = (
        ("relative_gain", "gain in success over the student's prefixes, %")
        if is_relative
        else ("difference", "gain over the student's prefixes, % points")
    )
    figure = Figure(figsize=(WIDTH_INCHES, HEIGHT_INCHES), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    dress(axes, "Continuation gain", f"{what}; bars: 95% over prompts")
    axes.grid(False, axis="x")
    lengths = sorted({record["length"] for record in records})
    continuers = list(dict.fromkeys(record["continuer"] for record in records))
    width = BAR_SHARE / len(continuers)
    for place, name in enumerate(continuers):
        mine = [record for record in records if record["continuer"] == name]
        there = [lengths.index(record["length"]) + (place + 0.5) * width - BAR_SHARE / 2 for record in mine]
        axes.bar(
            there, [100 * record[key] for record in mine], 0.92 * width, color=stroke(place).color, hatch="//" * place,
            edgecolor="white", linewidth=0, label=f"continued by the {name}",
        )  # fmt: skip
        low, high = ([100 * record[f"{key}_interval"][end] for record in mine] for end in (0, 1))
        axes.vlines(there, low, high, color=INK, linewidth=1.2)
    axes.axhline(0, color=MUTED, linewidth=1)
    axes.set_xticks(range(len(lengths)), [str(length) for length in lengths])
    axes.set_xlabel("tokens kept", color=MUTED, fontsize=TEXT_SIZE)
    figure.legend(loc="outside upper left", ncols=2, frameon=False, fontsize=TEXT_SIZE, labelcolor=INK)
    return saved(figure, path)


def plot_budget(records: Records, path: Path) -> Path:
    """A point per budget: the teacher's mean log-probability against the AUROC of its opinion, coloured by reward.

    The reward is written beside each point as well; bars are 95% intervals.

    Args:
      records: `BudgetPoint`s as dictionaries; those without one of the two numbers are left out.
      path: an SVG, PNG or PDF.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_INCHES, HEIGHT_INCHES), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    dress(axes, "Support and reward by KL budget", "at each point budget: reward; bars: 95% over prompts")
    shown = [each for each in records if None not in (each["teacher_logprob"], each["teacher_support_auroc"])]
    for place, record in enumerate(shown):
        x, y = record["teacher_logprob"], record["teacher_support_auroc"]
        for key, draw, at in (("teacher_logprob", axes.hlines, y), ("teacher_support_auroc", axes.vlines, x)):
            if record[f"{key}_interval"] is not None:
                draw(at, *record[f"{key}_interval"], color=GRID, linewidth=3, zorder=1)
        above = place % 2 == 0  # by turns, so that neighbours do not write over one another
        axes.annotate(
            f"{record['kl_radius']:g}: {100 * record['reward']:.0f}%", (x, y), xytext=(0, 9 if above else -16),
            textcoords="offset points", ha="center", fontsize=TEXT_SIZE, color=INK,
        )  # fmt: skip
    x, y, reward = ([each[key] for each in shown] for key in ("teacher_logprob", "teacher_support_auroc", "reward"))
    axes.plot(x, y, color=MUTED, linewidth=1, linestyle=":", zorder=2)
    points = axes.scatter(x, y, c=[100 * each for each in reward], cmap="viridis", s=42, edgecolors=INK, zorder=3)
    axes.set_xlabel("log q of the sampled tokens, nats", color=MUTED, fontsize=TEXT_SIZE)
    axes.set_ylabel("AUROC of teacher support", color=MUTED, fontsize=TEXT_SIZE)
    axes.margins(x=0.12, y=0.12)
    bar = figure.colorbar(points, ax=axes, pad=0.02)
    bar.set_label("reward, %", color=MUTED, fontsize=TEXT_SIZE)
    bar.ax.tick_params(colors=MUTED, labelsize=TEXT_SIZE, length=0)
    bar.outline.set_visible(False)
    return saved(figure, path)
