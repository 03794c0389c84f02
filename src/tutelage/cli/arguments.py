"""Arguments that several commands share, and what all paths and numbers on a command line have in common.

A path's `~` is expanded here as well as by the shell, which does not do so after an equals sign or in quotes. Numbers
have bounds beyond which no value makes sense.
"""

from __future__ import annotations

import math
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from tutelage.api.arguments import MAX_COUNT, MAX_SEED, MAX_SEEDS, MAX_WORKERS
from tutelage.errors import ConfigurationError
from tutelage.paths import expanded_path

__all__ = [
    "Accept",
    "AllowOverlap",
    "CheckpointRule",
    "EarlySteps",
    "FirstSeed",
    "InWorld",
    "MAX_PROBLEMS",
    "Output",
    "Overrides",
    "Precision",
    "Resume",
    "Rule",
    "RunFile",
    "Seeds",
    "Workers",
    "WorldProblems",
    "WorldSeed",
    "WorldSteps",
    "finite",
    "given_path",
]

MAX_PROBLEMS = 10**6


def given_path(param: typer.CallbackParam, value: Any) -> Any:
    """A path argument, or several, with `~` expanded; the callback of every argument that is one."""
    if isinstance(value, list | tuple):
        return [given_path(param, each) for each in value]
    return value if value is None else type(value)(expanded_path(str(value), _name(param)))


def finite(param: typer.CallbackParam, value: float) -> float:
    """A number that is one: the callback of every argument that could be NaN or infinite."""
    if not math.isfinite(value):
        raise ConfigurationError(f"{_name(param)} is {value}; expected a finite number.")
    return value


def _name(param: typer.CallbackParam) -> str:
    return param.opts[0] if param.opts[0].startswith("-") else param.opts[0].upper()


class Precision(StrEnum):
    """Types that weights can be loaded in."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"
    float64 = "float64"


class CheckpointRule(StrEnum):
    """Which weights of a run a comparison reports."""

    last = "last"
    best = "best"


Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Override one field: key.path=value. May be given several times.")
]
RunFile = Annotated[Path, typer.Argument(help="A run file, such as recipes/trb.toml.", callback=given_path)]
Seeds = Annotated[int, typer.Option(help="How many seeds every method is run with.", min=1, max=MAX_SEEDS)]
FirstSeed = Annotated[int, typer.Option(help="The first of them.", min=0, max=MAX_SEED - MAX_SEEDS)]
Output = Annotated[Path | None, typer.Option(help="Folder of the comparison.", callback=given_path)]
Workers = Annotated[
    int | None, typer.Option(help="Runs at once; default: as many as there are cores.", min=1, max=MAX_WORKERS)
]
EarlySteps = Annotated[int, typer.Option(help="First steps whose rollouts are judged.", min=1, max=MAX_COUNT)]
InWorld = Annotated[
    str | None,
    typer.Option(
        help="Replace models, prompts, problems and sizes: embedded (the packaged pair), or a TOML file.",
        callback=given_path,
    ),
]
WorldSteps = Annotated[
    int | None, typer.Option(help="Steps of a run in the embedded world; default 60.", min=1, max=MAX_COUNT)
]
WorldProblems = Annotated[
    int | None, typer.Option(help="Problems of the embedded world; default 250.", min=1, max=MAX_PROBLEMS)
]
WorldSeed = Annotated[
    int | None,
    typer.Option(help="Picks prompts and problems of the embedded world; default 0.", min=0, max=MAX_SEED),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue in the output folder; finished runs stay.")]
Accept = Annotated[
    list[str] | None,
    typer.Option(
        "--accept", help="With --resume: what may have changed, such as versions. May be given several times."
    ),
]
AllowOverlap = Annotated[bool, typer.Option("--allow-overlap", help="Evaluate on prompts that are trained on.")]
Rule = Annotated[CheckpointRule, typer.Option("--checkpoint", help="Which weights of a run are reported.")]
