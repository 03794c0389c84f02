import json
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure

from tutelage.errors import ConfigurationError, DataError
from tutelage.report import plot_run, plot_runs
from tutelage.report.curves import _draw as draw_sheet
from tutelage.report.figures import draw_figures
from tutelage.report.panels import mark_phases
from tutelage.report.records import Curve, RunRecords, columns_of, curve, mean_and_spread, read_run
from tutelage.report.thinning import moving_average, moving_median

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def write_run(folder, metrics, evaluations=(), torn=""):
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics) + torn)
    if evaluations:
        (folder / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in evaluations) + torn)
    return folder


def full_metrics(num_steps=30, warmup=10):
    return [
        {
            "step": step, "loss": 1 / (1 + step), "reward": step / 40, "teacher_logprob": -1.0, "teacher_entropy": 0.3,
            "kl_radius": max(0.0, 0.02 * (1 - step / warmup)), "response_tokens": 100 + step, "seconds_rollout": 3.0,
            "seconds_update": 1.0,
        }
        | ({"blend_mean": 0.2, "kl_used": 0.01} if step < warmup else {"seconds_score": 1.0})
        for step in range(num_steps)
    ]  # fmt: skip


def evaluations(names=("math500", "aime"), steps=(0, 10, 20)):
    return [
        {"step": step, "name": name, "pass_at_1": 0.3, "pass_at_1_interval": [0.2, 0.4]}
        for step in steps
        for name in names
    ]


def snapshot(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".png"}


@pytest.mark.runs
def test_plot_run_of_a_killed_run_writes_one_figure_and_touches_nothing_else(tmp_path):
    folder = write_run(tmp_path / "trb $x_1$ run", full_metrics(), evaluations(), torn='{"step": 30, "lo')
    before = snapshot(folder)
    path = plot_run(folder)
    assert path == folder / "curves.png"
    assert path.read_bytes().startswith(PNG_SIGNATURE)
    assert snapshot(folder) == before
    assert len(list(folder.iterdir())) == 3


@pytest.mark.runs
def test_a_figure_may_be_refreshed_and_equal_files_give_equal_bytes(tmp_path):
    folder = write_run(tmp_path / "run", full_metrics())
    (folder / "curves.png").write_bytes(b"an old figure")
    first = plot_run(folder).read_bytes()
    assert first.startswith(PNG_SIGNATURE)
    assert plot_run(folder).read_bytes() == first


@pytest.mark.runs
@pytest.mark.parametrize(
    "metrics",
    [
        [{"step": 0}],
        [{"step": 0, "loss": 0.5, "seconds_update": 1.0}],
        [{"step": 0, "loss": None}, {"step": 1, "reward": 1.0}, {"step": 2, "kl_radius": 0.01}],
        [{"note": "no step at all"}],
    ],
)
def test_missing_keys_leave_a_panel_empty(tmp_path, metrics):
    folder = write_run(
        tmp_path / "run", metrics, [{"step": 0, "name": "a"}, {"step": 1, "name": "b", "pass_at_1": 0.5}]
    )
    assert plot_run(folder).read_bytes().startswith(PNG_SIGNATURE)


def test_a_line_stands_where_another_phase_begins():
    figure = Figure()
    metrics = [{"step": step, "phase": "sft" if step < 3 else "opd"} for step in range(6)]
    for records, expected in ((metrics, [2.5]), (full_metrics(), [])):
        axes = figure.add_subplot()
        mark_phases(axes, RunRecords(columns_of(records), {}))
        assert [line.get_xdata()[0] for line in axes.lines] == expected


@pytest.mark.runs
def test_plot_runs_overlays_runs_of_different_kinds(tmp_path):
    runs = {
        "_TRB": write_run(tmp_path / "a", full_metrics(), evaluations()),
        "cost in $, more $": write_run(tmp_path / "b", full_metrics(12, warmup=1), evaluations(names=("math500",))),
        "no evaluation": write_run(tmp_path / "c", [{"step": 0, "loss": 1.0}]),
    }
    path = plot_runs(runs, tmp_path / "figures" / "all.png")
    assert path.read_bytes().startswith(PNG_SIGNATURE)
    two = {label: runs[label] for label in list(runs)[1:]}  # one evaluation set in all: drawn with intervals
    assert plot_runs(two, tmp_path / "two.SVG").read_bytes().startswith(b"<?xml")


def rated_metrics(num_steps=12):
    numbers = {
        "reward": 0.2, "reward/correct": 0.1, "reward/overlong": -0.5, "zero_spread_share": 0.6,
        "clip_share_high": 0.01, "clip_share_low": 0.02, "student_entropy": 1.1, "sampled_reference_kl": 0.03,
    }  # fmt: skip
    return [{"step": step, "loss": 0.1, **{key: value * (1 + step) for key, value in numbers.items()}}
            for step in range(num_steps)]  # fmt: skip


@pytest.mark.runs
def test_a_run_with_rewards_shows_what_it_has_in_place_of_a_teacher(tmp_path):
    rated = read_run(write_run(tmp_path / "rated", rated_metrics()))
    plain = read_run(write_run(tmp_path / "plain", full_metrics()))
    np.testing.assert_allclose(curve(rated.metrics, "reward/overlong").values, -0.5 * np.arange(1, 13))
    assert rated.metrics.keys_with("reward/") == ["reward/correct", "reward/overlong"]
    assert plain.metrics.keys_with("reward/") == []
    names = {figure.name for figure in draw_figures({"rated": [rated]})}
    with_rewards = {"prompts-without-spread", "rewards", "clipping", "student-entropy", "kl-to-the-reference"}
    assert names == {"reward", "loss"} | with_rewards
    assert not with_rewards & {figure.name for figure in draw_figures({"plain": [plain]})}
    (both,) = [figure for figure in draw_figures({"rated": [rated], "plain": [plain]}) if figure.name == "rewards"]
    assert "overlong" in both.svg and "correct" in both.svg
    constrained = [{**record, "reward_multiplier/overlong": 0.5 + record["step"]} for record in rated_metrics()]
    weighed = read_run(write_run(tmp_path / "weighed", constrained))
    np.testing.assert_allclose(curve(weighed.metrics, "reward_multiplier/overlong").values, 0.5 + np.arange(12))
    drawn = {figure.name: figure for figure in draw_figures({"weighed": [weighed], "rated": [rated]})}
    assert set(drawn) == names | {"reward-multipliers"}
    assert "overlong" in drawn["reward-multipliers"].svg and "correct" not in drawn["reward-multipliers"].svg


def test_the_sheet_of_a_run_without_a_teacher(tmp_path):
    titles = {}
    for name, metrics in (("rated", rated_metrics()), ("plain", full_metrics(warmup=1))):
        figure = draw_sheet({name: read_run(write_run(tmp_path / name, metrics))})
        titles[name] = {
            axes.get_title(loc="left").splitlines()[0] for axes in figure.axes if axes.get_title(loc="left")
        }
    assert {"Prompts without spread", "Student entropy"} <= titles["rated"]
    assert {"Teacher support"} <= titles["plain"] and "Prompts without spread" not in titles["plain"]


def test_refusals(tmp_path):
    folder = write_run(tmp_path / "run", full_metrics(3))
    with pytest.raises(ConfigurationError, match=r"must end in \.png"):
        plot_runs({"run": folder}, folder / "metrics.jsonl")
    with pytest.raises(DataError, match="no run"):
        plot_runs({}, tmp_path / "figure.png")
    with pytest.raises(DataError, match="does not exist"):
        plot_run(tmp_path)
    (folder / "metrics.jsonl").write_text("")
    with pytest.raises(DataError, match="no complete line"):
        plot_run(folder)
    assert not list(tmp_path.rglob("*.png"))


@pytest.mark.processes
def test_importing_the_package_does_not_import_matplotlib():
    code = "import sys, tutelage.report; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_smoothing_keeps_constants_lengths_and_short_curves():
    for smooth in (moving_average, moving_median):
        np.testing.assert_allclose(smooth(np.full(100, 2.5)), 2.5)
        assert smooth(np.arange(5.0)).tolist() == [0, 1, 2, 3, 4]
        assert smooth(np.zeros(0)).shape == (0,)
    values = np.random.default_rng(0).random(40)  # window 3
    assert moving_average(values)[7] == pytest.approx(values[6:9].mean())
    assert moving_average(values)[0] == pytest.approx(values[:2].mean())
    assert moving_median(values)[7] == np.median(values[6:9])


def test_a_mean_over_evaluation_sets_needs_all_of_them():
    first = Curve(np.array([0.0, 10.0, 20.0]), np.array([0.2, 0.4, 0.6]))
    second = Curve(np.array([10.0, 20.0]), np.array([0.0, 1.0]))
    mean = mean_and_spread([first, second])[0]
    assert mean.steps.tolist() == [10, 20]
    np.testing.assert_allclose(mean.values, [0.2, 0.8])
