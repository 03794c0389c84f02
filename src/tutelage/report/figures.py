"""The figures of a report, one question each and the size of a paper's column, as SVG and PNG.

Runs arrive as method -> records, one per seed; lines are means over seeds and bands one standard deviation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np

from tutelage.report.panels import draw_steps
from tutelage.report.plain import as_label
from tutelage.report.records import (
    MULTIPLIER_PREFIX,
    REWARD_PREFIX,
    Curve,
    RunRecords,
    curve,
    greedy_names,
    mean_and_spread,
    on_common_steps,
    pass_at_1_curve,
)
from tutelage.report.style import (
    INK,
    MUTED,
    SHADE,
    TEXT_SIZE,
    Stroke,
    dress,
    legend_columns,
    name_strokes,
    silent_about_glyphs,
    stroke,
    texts_as_text,
)
from tutelage.report.thinning import extreme_places, extremes, smoothed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["ReportFigure", "draw_figures"]

Methods = Mapping[str, Sequence[RunRecords]]
Strokes = Mapping[str, Stroke]
CurveOf = Callable[[RunRecords], Curve]
WIDTH_INCHES, HEIGHT_INCHES = 4.8, 3.5
DOTS_PER_INCH = 200
BAND_ALPHA = 0.16
MAX_REWARD_ROWS = 4
PHASES = {
    "seconds_rollout": ("rollout", ""),
    "seconds_score": ("score", "//"),
    "seconds_verify": ("verify", "xx"),
    "seconds_update": ("update", ".."),
}


@dataclass(frozen=True)
class ReportFigure:
    """A figure: the stem of its files, its heading, its caption, and its drawing."""

    name: str
    title: str
    caption: str
    svg: str
    png: bytes


def draw_figures(methods: Methods) -> Iterator[ReportFigure]:
    """Every figure that the runs have numbers for."""
    looks: list[tuple[str, str, str, str, CurveOf]] = [
        ("pass-at-1", "pass@1", "share correct, sampled, mean over the sets",
         "Share of right answers on the evaluation problems.", lambda run: pass_at_1_curve(run.evaluations)),
        ("pass-at-1-greedy", "pass@1, greedy", "share correct", "Share of right greedy answers.",
         lambda run: pass_at_1_curve(run.evaluations, is_greedy=True)
         if greedy_names(run.evaluations) else Curve(np.zeros(0), np.zeros(0))),
    ]  # fmt: skip
    is_rated = any(run.metrics.keys_with(REWARD_PREFIX) for runs in methods.values() for run in runs)
    reward = (
        "reward",
        "Reward",
        "right training rollouts, of the policy",
        "Share of right answers among the training rollouts. A policy that asks the teacher is helped.",
    )
    rated = (
        "reward",
        "Reward",
        "mean over the rollouts of a step, all rewards combined",
        "What the training rollouts are worth; in a run without rewards the share of right ones. A policy that "
        "asks the teacher is helped.",
    )
    metrics = [
        rated if is_rated else reward,
        ("zero_spread_share", "Prompts without spread", "share of prompts whose answers are all worth the same",
         "An advantage that compares the answers to a prompt is 0 there: these prompts teach nothing."),
        ("loss", "Loss", "divergence from the target, nats per token", "What is minimised."),
        ("teacher_logprob", "Teacher support", "log q of the sampled tokens, nats",
         "How probable the teacher finds what was sampled; higher is nearer to the teacher."),
        ("response_tokens", "Response length", "tokens, mean over the rollouts", "Tokens per answer."),
        ("student_entropy", "Student entropy", "on the visited prefixes, nats per token",
         "How undecided the student is; at 0 it explores nothing any more."),
        ("sampled_reverse_kl", "KL to the teacher", "mean log p - log q of the sampled tokens, nats",
         "How far the student is from the teacher, estimated on what was sampled; too low under a policy that asks the "
         "teacher."),
        ("sampled_reference_kl", "KL to the reference", "mean log p - log reference of the sampled tokens, nats",
         "How far the student has gone from the third model, estimated on what was sampled."),
    ]  # fmt: skip
    strokes = {name: stroke(place) for place, name in enumerate(methods)}
    for name, title, subtitle, caption, curve_of in looks:
        if any(map(len, _curves(methods, curve_of))):
            figure, (axes,) = _sheet(methods, strokes)
            dress(axes, title, subtitle)
            _bands(axes, methods, strokes, curve_of)
            yield _finished(figure, name, title, f"{caption} {_band_words(methods)}")
    for key, title, subtitle, caption in metrics:
        if _with_metric(methods, key):
            figure, (axes,) = _sheet(methods, strokes)
            dress(axes, title, subtitle)
            _smooth_bands(axes, methods, strokes, key)
            yield _finished(figure, title.lower().replace(" ", "-"), title, f"{caption} {_step_words(methods)}")
    yield from _by_reward(
        methods, strokes, REWARD_PREFIX, "Rewards, one by one",
        "Mean of each reward over the training rollouts, without its weight.",
    )  # fmt: skip
    yield from _by_reward(
        methods, strokes, MULTIPLIER_PREFIX, "Reward multipliers",
        "What the combination multiplies each reward with, beside its weight.",
    )  # fmt: skip
    yield from _clipping(methods, strokes)
    yield from _entropy(methods, strokes)
    yield from _trust_region(methods, strokes)
    yield from _cost(methods)


def _by_reward(methods: Methods, strokes: Strokes, prefix: str, title: str, words: str) -> Iterator[ReportFigure]:
    """A number of each reward by itself; rewards where a run has several."""
    found = [key for runs in methods.values() for run in runs for key in run.metrics.keys_with(prefix)]
    keys = list(dict.fromkeys(found))
    if len(keys) < (2 if prefix == REWARD_PREFIX else 1):
        return
    shown = keys[:MAX_REWARD_ROWS]
    figure, all_axes = _sheet(methods, strokes, rows=len(shown))
    for place, (key, axes) in enumerate(zip(shown, all_axes, strict=True)):
        dress(axes, title if place == 0 else "", as_label(key.removeprefix(prefix)))
        _smooth_bands(axes, methods, strokes, key)
        axes.locator_params(axis="y", nbins=4)
    left_out = f" {len(keys) - len(shown)} more are not shown." if len(keys) > len(shown) else ""
    name = "rewards" if prefix == REWARD_PREFIX else "reward-multipliers"
    yield _finished(figure, name, title, f"{words}{left_out} " + _step_words(methods))


def _clipping(methods: Methods, strokes: Strokes) -> Iterator[ReportFigure]:
    clipped = _with_metric(methods, "clip_share_high")
    if not clipped:
        return
    figure, (above, below) = _sheet(clipped, strokes, rows=2)
    dress(above, "Clipping", "share of tokens above the upper bound of the ratio")
    dress(below, "", "share of tokens below the lower bound")
    for axes, key in ((above, "clip_share_high"), (below, "clip_share_low")):
        _smooth_bands(axes, clipped, strokes, key)
        axes.set_ylim(bottom=0)
        axes.locator_params(axis="y", nbins=4)
    yield _finished(
        figure, "clipping", "Clipping",
        "Tokens whose probability has gone as far as an update may take it, up or down. " + _step_words(clipped),
    )  # fmt: skip


def _entropy(methods: Methods, strokes: Strokes) -> Iterator[ReportFigure]:
    if not _with_metric(methods, "teacher_entropy"):
        return
    figure, (axes,) = _sheet(methods, strokes)
    dress(axes, "Teacher entropy and pass@1", "left, lines: entropy, nats per token; right, marks: pass@1")
    _smooth_bands(axes, methods, strokes, "teacher_entropy")
    other = axes.twinx()
    other.spines[["top", "right", "left", "bottom"]].set_visible(False)
    other.tick_params(colors=MUTED, labelsize=TEXT_SIZE, length=0)
    for name, runs in methods.items():
        lines = [line for line in (pass_at_1_curve(run.evaluations) for run in runs) if len(line)]
        if lines:
            mean, how = extremes(mean_and_spread(lines)[0]), strokes[name]
            other.plot(
                mean.steps, mean.values, how.marker, color=how.color, ms=6, markeredgecolor="white", linestyle=":",
                linewidth=0.8,
            )  # fmt: skip
    yield _finished(
        figure, "teacher-entropy", "Teacher entropy and pass@1",
        "How unsure the teacher is on the prefixes that the policy visits (lines, left), and the share of right "
        "answers (marks, right): lower entropy means prefixes on which the teacher knows how "
        "to go on. "
        + _step_words(methods),
    )  # fmt: skip


def _trust_region(methods: Methods, strokes: Strokes) -> Iterator[ReportFigure]:
    blended = _with_metric(methods, "blend_mean")
    if not blended:
        return
    figure, (above, below) = _sheet(blended, strokes, rows=2)
    dress(above, "Trust region", "beta: teacher share of the policy, mean over tokens")
    dress(below, "", "KL(policy || student) used, and the budget (dotted), nats")
    _smooth_bands(above, blended, strokes, "blend_mean")
    _smooth_bands(below, blended, strokes, "kl_used")
    for name, runs in blended.items():
        budget = extremes(curve(runs[0].metrics, "kl_radius"))
        below.plot(budget.steps, budget.values, color=strokes[name].color, linestyle=":", linewidth=1.4)
    for axes in (above, below):
        axes.set_ylim(bottom=0)
        axes.locator_params(axis="y", nbins=4)
    yield _finished(
        figure, "trust-region", "Budget and beta",
        "How much of the teacher is in the policy, and how much of its KL budget that takes. " + _step_words(blended),
    )  # fmt: skip


def _cost(methods: Methods) -> Iterator[ReportFigure]:
    """Median seconds per phase: those of steps with a budget apart from those without."""
    bars: dict[str, dict[str, float]] = {}
    for name, runs in methods.items():
        seconds = {key: np.nan_to_num(np.concatenate([run.metrics[key] for run in runs])) for key in PHASES}
        is_warm = np.concatenate([run.metrics["kl_radius"] for run in runs]) > 0  # which NaN is not
        is_mixed = is_warm.any() and not is_warm.all()
        parts = (
            {f"{name}, warm-up": is_warm, f"{name}, after": ~is_warm}
            if is_mixed
            else {name: np.full(len(is_warm), True)}
        )
        for label, part in parts.items():
            bars[label] = {key: float(np.median(values[part])) for key, values in seconds.items() if part.any()}
    if not any(sum(phases.values()) for phases in bars.values()):
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_INCHES, 1.5 + 0.34 * len(bars)), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    dress(axes, "Cost of a step", "seconds by phase, median over steps")
    left = np.zeros(len(bars))
    for place, (key, (phase, hatch)) in enumerate(PHASES.items()):
        widths = np.array([phases.get(key, 0.0) for phases in bars.values()])
        axes.barh(
            range(len(bars)), widths, left=left, height=0.62, color=stroke(place).color, hatch=hatch,
            edgecolor="white", linewidth=0, label=phase,
        )  # fmt: skip
        left = left + widths
    for place, total in enumerate(left):
        axes.annotate(f"{total:.2f}", (total, place), xytext=(3, 0), textcoords="offset points", va="center",
                      fontsize=TEXT_SIZE, color=INK)  # fmt: skip
    axes.margins(x=0.12)
    axes.set_yticks(range(len(bars)), [as_label(label) for label in bars])
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    legend = figure.legend(loc="outside lower left", ncols=4, frameon=False, fontsize=TEXT_SIZE, handlelength=1.6)
    for text in legend.get_texts():
        text.set_color(INK)
    yield _finished(
        figure, "cost", "Cost of a step",
        "Wall-clock seconds of each phase of a step, with a trust region and without where a run has both.",
    )  # fmt: skip


def _sheet(methods: Methods, strokes: Strokes, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """Axes below one another with the steps of the warm-up shaded and the names of the methods on top."""
    from matplotlib.figure import Figure  # here, so that importing the package does not pay for matplotlib
    from matplotlib.ticker import MaxNLocator

    columns = legend_columns(WIDTH_INCHES, methods)
    height = HEIGHT_INCHES + 1.1 * (rows - 1) + 0.19 * ((len(methods) - 1) // columns)
    figure = Figure(figsize=(WIDTH_INCHES, height), layout="constrained", facecolor="white")
    all_axes = [figure.add_subplot(rows, 1, row + 1) for row in range(rows)]
    warm = [run.metrics.steps[run.metrics["kl_radius"] > 0] for runs in methods.values() for run in runs]
    warm = [steps for steps in warm if len(steps)]
    for axes in all_axes:
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        if warm:
            first, last = min(steps[0] for steps in warm), max(steps[-1] for steps in warm)
            axes.axvspan(first - 0.5, last + 0.5, color=SHADE, linewidth=0, zorder=0)
    all_axes[-1].set_xlabel("optimiser step" + "; warm-up shaded" * bool(warm), color=MUTED, fontsize=TEXT_SIZE)
    name_strokes(figure, {name: strokes[name] for name in methods})
    return figure, all_axes


def _smooth_bands(axes: Axes, methods: Methods, strokes: Strokes, key: str) -> None:
    """A metric's moving average, as `_bands` draws it, over thin single steps where every method is one run."""
    if _is_one_run_each(methods):
        for name, (run,) in methods.items():
            draw_steps(axes, curve(run.metrics, key), strokes[name], len(methods))
    _bands(axes, methods, strokes, _metric(key), smooth=smoothed)


def _bands(
    axes: Axes,
    methods: Methods,
    strokes: Strokes,
    curve_of: CurveOf,
    smooth: Callable[[Curve], Curve] = lambda line: line,
) -> None:
    for name, runs in methods.items():
        lines = [line for line in map(curve_of, runs) if len(line)]
        if not lines:
            continue
        (mean, spread), how = mean_and_spread([smooth(line) for line in on_common_steps(lines)]), strokes[name]
        places = extreme_places(mean.values)
        steps, values = mean.steps[places], mean.values[places]
        if len(lines) > 1:
            low, high = values - spread[places], values + spread[places]
            axes.fill_between(steps, low, high, color=how.color, alpha=BAND_ALPHA, linewidth=0)
        marker = how.marker if len(mean) < 30 else ""
        axes.plot(steps, values, color=how.color, linestyle=how.linestyle, linewidth=1.8, marker=marker, ms=4.5)


def _metric(key: str) -> CurveOf:
    return lambda run: curve(run.metrics, key)


def _with_metric(methods: Methods, key: str) -> Methods:
    """The methods of which a run recorded it."""
    return {name: runs for name, runs in methods.items() if any(len(curve(run.metrics, key)) for run in runs)}


def _curves(methods: Methods, curve_of: CurveOf) -> list[Curve]:
    return [curve_of(run) for runs in methods.values() for run in runs]


def _is_one_run_each(methods: Methods) -> bool:
    return max(map(len, methods.values())) == 1


def _band_words(methods: Methods) -> str:
    return "One run each." if _is_one_run_each(methods) else "Means over seeds; band: one standard deviation."


def _step_words(methods: Methods) -> str:
    if _is_one_run_each(methods):
        return "One run each. Thick: moving average; thin: single steps."
    return "Moving averages. " + _band_words(methods)


def _finished(figure: Figure, name: str, title: str, caption: str) -> ReportFigure:
    from matplotlib import rc_context

    svg, png = BytesIO(), BytesIO()
    texts_as_text(figure)
    settings = {"svg.fonttype": "none", "svg.hashsalt": name, "hatch.linewidth": 0.7, "text.parse_math": False}
    with rc_context(settings), silent_about_glyphs():  # type: ignore[arg-type]
        figure.savefig(svg, format="svg", metadata={"Date": None})
        figure.savefig(png, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    return ReportFigure(name, title, caption, svg.getvalue().decode("utf-8"), png.getvalue())
