"""Grids: how they are written, which runs they make, and that they are drawn."""

from __future__ import annotations

from pathlib import Path

import pytest

from tutelage.comparison.measures import summarise_methods
from tutelage.comparison.outcome import Outcome
from tutelage.comparison.plan import Plan
from tutelage.comparison.sweep import draw_sweep, grid_points, parse_grid
from tutelage.errors import ConfigurationError


def test_a_grid_is_read_and_multiplied_out() -> None:
    grid = parse_grid(["policy.kl_radius.start=0.005, 0.01", "policy.kl_radius.steps=10,25"])
    assert grid == {"policy.kl_radius.start": [0.005, 0.01], "policy.kl_radius.steps": [10, 25]}
    points = grid_points("trb", grid)
    assert [point.name for point in points] == [
        "trb-start=0.005-steps=10", "trb-start=0.005-steps=25", "trb-start=0.01-steps=10", "trb-start=0.01-steps=25",
    ]  # fmt: skip
    assert points[1].overrides == ["policy.kl_radius.start=0.005", "policy.kl_radius.steps=25"]


def test_values_may_be_words_or_tables() -> None:
    assert parse_grid(["policy=student, teacher"]) == {"policy": ["student", "teacher"]}
    assert parse_grid(["a=[1, 2], [3]"]) == {"a": [[1, 2], [3]]}
    (point,) = grid_points("x", {"divergence.rest": ["tail"]})
    assert point.name == "x-rest=tail" and point.overrides == ['divergence.rest="tail"']
    names = [point.name for point in grid_points("x", {"policy.weight": [1], "target.weight": [2]})]
    assert names == ["x-policy.weight=1-target.weight=2"], "two keys of one last part are told apart"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "needs a grid"),
        (["policy.kl_radius"], "expected key.path=v1,v2"),
        (["a="], "expected key.path"),
        (["a=1", "a=2"], "names a twice"),
        (["a=1,1"], "a value is there twice"),
    ],
)
def test_grids_that_are_none(options: list[str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        parse_grid(options)


@pytest.mark.runs
@pytest.mark.parametrize("baseline", ["opd", None])
@pytest.mark.parametrize("grid", [{"start": [0.05, 0.01], "steps": [10, 25]}, {"rest": ["tail", "truncated"]}])
def test_a_sweep_is_drawn(grid: dict[str, list[object]], baseline: str | None, tmp_path: Path) -> None:
    points = grid_points("trb", grid)
    names = [*([baseline] if baseline else []), *(point.name for point in points)]
    values = {name: {seed: {"pass_at_1": 0.1 * seed, "area": 0.2} for seed in (0, 1)} for name in names}
    values[points[-1].name] = {}  # nothing of it is finished
    outcome = Outcome(Plan(tmp_path, [], []), values, summarise_methods(values), [])
    path = draw_sweep(outcome, points, grid, baseline, tmp_path / "sweep.png")
    assert path.read_bytes().startswith(b"\x89PNG")
