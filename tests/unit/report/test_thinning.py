"""Of a long curve as much is drawn as can be seen: few points, every spike, and means that are those of all points."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from tutelage.report.panels import draw_metric, draw_seconds, mark_phases, shade_trust_region
from tutelage.report.records import Columns, Curve, RunRecords, columns_of
from tutelage.report.style import stroke
from tutelage.report.thinning import MAX_STRETCHES, extreme_places, extremes, gathered, moving_average, smoothed

LONG = 20_011


def test_short_curves_are_as_they_are() -> None:
    values = np.random.default_rng(0).random(MAX_STRETCHES)
    line = Curve(np.arange(MAX_STRETCHES, dtype=float), values)
    assert extreme_places(values).tolist() == list(range(MAX_STRETCHES))
    assert gathered(values) is values
    assert smoothed(line).values.tolist() == moving_average(values).tolist()


def test_spikes_and_ends_stay() -> None:
    values = np.random.default_rng(0).random(LONG)
    spikes = {777: 1e6, 778: -1e6, 12_345: 50.0, LONG - 1: -3.0}
    for place, value in spikes.items():
        values[place] = value
    drawn = extremes(Curve(np.arange(LONG, dtype=float), values))
    assert len(drawn) <= 2 * MAX_STRETCHES + 2
    assert (np.diff(drawn.steps) > 0).all() and (values[drawn.steps.astype(int)] == drawn.values).all()
    assert {0.0, *map(float, spikes)} <= set(drawn.steps)


def test_stretches_have_the_means_and_medians_of_all_their_points() -> None:
    values = np.random.default_rng(0).random(LONG)
    assert len(gathered(values)) == MAX_STRETCHES
    assert gathered(values)[0] == pytest.approx(values[:40].mean())
    even = values[: 20 * MAX_STRETCHES].reshape(MAX_STRETCHES, 20)
    assert gathered(even.ravel()) == pytest.approx(even.mean(axis=1), rel=1e-12)
    assert gathered(even.ravel(), by_median=True).tolist() == np.median(even, axis=1).tolist()


def test_a_smooth_line_of_a_long_curve_is_its_moving_average() -> None:
    steps = np.arange(10_000.0)
    values = np.sin(steps / 800) + np.random.default_rng(0).normal(size=len(steps))
    exact = moving_average(values)
    line = smoothed(Curve(steps, values))
    inside = slice(20, -20)
    assert line.values[inside] == pytest.approx(np.interp(line.steps, steps, exact)[inside], abs=0.06)


def test_a_spike_does_not_spoil_what_is_far_from_it() -> None:
    values = np.full(LONG, 0.5)
    values[100] = 1e25
    assert smoothed(Curve(np.arange(LONG, dtype=float), values)).values[100:].tolist() == [0.5] * (MAX_STRETCHES - 100)


def long_run() -> RunRecords:
    steps = np.arange(LONG, dtype=float)
    loss = np.full(LONG, 0.5)
    loss[4_321] = 1000.0
    seconds = np.full(LONG, 2.0)
    radius, phase = steps % 2, steps % 3  # as bad as it gets: a budget and a phase that change at every step
    values = {"loss": loss, "seconds_rollout": seconds, "kl_radius": radius, "phase": phase}
    return RunRecords(Columns(steps, values), {})


def test_panels_of_a_long_run_have_few_points() -> None:
    run, axes = long_run(), Figure().add_subplot()
    draw_metric(axes, {"run": run}, {"run": stroke(0)}, "loss", "Loss", "")
    thin, thick = axes.lines
    assert len(thin.get_xdata()) <= 2 * MAX_STRETCHES + 2 and len(thick.get_xdata()) <= MAX_STRETCHES  # type: ignore[arg-type]
    assert max(thin.get_ydata()) == 1000  # type: ignore[type-var, arg-type]
    axes = Figure().add_subplot()
    draw_seconds(axes, run)
    shade_trust_region(axes, run)
    mark_phases(axes, run)
    assert len(axes.patches) <= 2 * MAX_STRETCHES and not axes.lines
    (area,) = axes.collections
    assert len(area.get_paths()[0].vertices) < 3 * MAX_STRETCHES


def test_lines_without_order_are_put_in_order() -> None:
    columns = columns_of([{"step": step, "loss": float(place)} for place, step in enumerate((3, 1, 2, 3, 2))])
    assert columns.steps.tolist() == [1, 2, 3] and columns["loss"].tolist() == [1, 4, 3]
