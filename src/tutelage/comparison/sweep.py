"""Which settings? A grid over keys of one run file, each point a method, drawn against a baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import tomli_w

from tutelage.comparison.measures import MEASURES, Summary
from tutelage.comparison.outcome import Outcome
from tutelage.config import items_of
from tutelage.errors import ConfigurationError
from tutelage.report import Point, plot_sweep

__all__ = ["SWEEP_NOTE", "GridPoint", "draw_sweep", "grid_points", "parse_grid"]

SWEEP_NOTE = (
    "A sweep looks for settings: its best point is the luckiest one too. Choose here, and report what it does on other "
    "problems and other seeds."
)
DRAWN = ("pass_at_1", "pass_at_1_greedy", "area", "early_reward")


@dataclass(frozen=True)
class GridPoint:
    """One setting of a sweep: a name for its runs, and the value of every key."""

    name: str
    values: Mapping[str, Any]

    @property
    def overrides(self) -> list[str]:
        """As `--set` takes them."""
        return [f"{key}={_literal(value)}" for key, value in self.values.items()]


def parse_grid(options: Sequence[str]) -> dict[str, list[Any]]:
    """`key.path=v1,v2,v3`, several times -> key -> values. A value is TOML, or text that needs no quotes."""
    grid: dict[str, list[Any]] = {}
    for option in options:
        key, separator, text = (part.strip() for part in option.partition("="))
        if not separator or not key or not text:
            raise ConfigurationError(
                f"--grid got {option!r}; expected key.path=v1,v2, such as policy.kl_radius=0.01,0.05."
            )
        if key in grid:
            raise ConfigurationError(f"--grid names {key} twice. Give all of its values at once, with commas between.")
        values = items_of(text)
        if values is None:
            values = [value.strip() for value in text.split(",")]
        if any(values.count(value) > 1 for value in values):
            raise ConfigurationError(f"--grid {option}: a value is there twice. Give each once.")
        grid[key] = values
    if not grid:
        raise ConfigurationError("a sweep needs a grid. Give --grid key.path=v1,v2, once or several times.")
    return grid


def grid_points(recipe: str, grid: Mapping[str, Sequence[Any]]) -> list[GridPoint]:
    """Every combination, the last key changing fastest; named by recipe, last part of each key, and value."""
    short = [key.rsplit(".", 1)[-1] for key in grid]
    labels = [key if short.count(key.rsplit(".", 1)[-1]) > 1 else key.rsplit(".", 1)[-1] for key in grid]
    points = []
    for values in product(*grid.values()):
        parts = [f"{label}={_plain(value)}" for label, value in zip(labels, values, strict=True)]
        points.append(GridPoint("-".join([recipe, *parts]), dict(zip(grid, values, strict=True))))
    return points


def draw_sweep(
    outcome: Outcome, points: Sequence[GridPoint], grid: Mapping[str, Sequence[Any]], baseline: str | None, path: Path
) -> Path:
    """The first key on x, a line for every combination of the others, the baseline as a level with its band."""
    (x_key, *others) = grid
    panels: dict[str, dict[str, dict[object, Point]]] = {}
    baselines: dict[str, Point] = {}
    for name in DRAWN:
        measure = MEASURES[name]
        lines: dict[str, dict[object, Point]] = {}
        for point in points:
            summary = outcome.summaries[point.name].get(name)
            if summary is not None:
                line = ", ".join(f"{key} {_plain(point.values[key])}" for key in others) or x_key
                lines.setdefault(line, {})[_x(point.values[x_key])] = _point(summary, measure.scale)
        if lines:
            panels[measure.title] = lines
        if baseline is not None and name in outcome.summaries[baseline]:
            baselines[measure.title] = _point(outcome.summaries[baseline][name], measure.scale)
    title = f"dashed: {baseline}" if baseline is not None else ""
    return plot_sweep(panels, baselines, path, x_label=x_key, title=title)


def _point(summary: Summary, scale: float) -> Point:
    return Point(scale * summary.mean, scale * (summary.spread or 0.0))


def _literal(value: Any) -> str:
    return tomli_w.dumps({"value": value}).removeprefix("value = ").strip()


def _plain(value: Any) -> str:
    text = value if isinstance(value, str) else _literal(value)
    return "".join(letter if letter.isalnum() or letter in "._+" else "-" for letter in text)


def _x(value: Any) -> object:
    return value if isinstance(value, int | float) else _plain(value)
