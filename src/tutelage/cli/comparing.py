"""`tutelage compare` and `tutelage sweep`: which method, which settings? Reads arguments, calls `comparison`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tutelage.cli.arguments import (
    Accept,
    AllowOverlap,
    CheckpointRule,
    EarlySteps,
    FirstSeed,
    InWorld,
    Output,
    Overrides,
    Resume,
    Rule,
    RunFile,
    Seeds,
    Workers,
    WorldProblems,
    WorldSeed,
    WorldSteps,
    given_path,
)
from tutelage.cli.console import TextConsole
from tutelage.errors import ConfigurationError

if TYPE_CHECKING:
    from tutelage.comparison import World

__all__ = ["compare", "sweep"]


def compare(
    run_files: Annotated[
        list[Path],
        typer.Argument(help="Run files; the first is what the others are compared with.", callback=given_path),
    ],
    seeds: Seeds = 5,
    first_seed: FirstSeed = 0,
    output: Output = None,
    workers: Workers = None,
    overrides: Overrides = None,
    checkpoint: Rule = CheckpointRule.last,
    early_steps: EarlySteps = 10,
    world: InWorld = None,
    steps: WorldSteps = None,
    problems: WorldProblems = None,
    problem_seed: WorldSeed = None,
    resume: Resume = False,
    accept: Accept = None,
    allow_overlap: AllowOverlap = False,
) -> None:
    """Compare methods fairly: same prompts and problems, several seeds, paired differences, cost."""
    from tutelage.comparison import Plan, make_methods, run_plan
    from tutelage.config import read_run_file

    tables = [read_run_file(path) for path in run_files]
    folder = output or Path("comparisons") / "-".join(str(table["name"]) for table in tables)
    where = _world(world, folder, steps, problems, problem_seed)
    plan = Plan(
        folder,
        make_methods(tables, overrides or [], where),
        range(first_seed, first_seed + seeds),
        checkpoint.value,
        early_steps,
        where.name if where is not None else None,
        allows_overlap=allow_overlap,
    )
    run_plan(plan, where, TextConsole(), workers=workers, resume=resume, accept=accept or [])


def sweep(
    run_file: RunFile,
    grid: Annotated[
        list[str],
        typer.Option("--grid", help="key.path=v1,v2,v3; every combination is run. The first key is drawn on x."),
    ],
    baseline: Annotated[
        Path | None, typer.Option(help="A run file that every setting is compared with.", callback=given_path)
    ] = None,
    seeds: Seeds = 3,
    first_seed: FirstSeed = 0,
    output: Output = None,
    workers: Workers = None,
    overrides: Overrides = None,
    checkpoint: Rule = CheckpointRule.last,
    early_steps: EarlySteps = 10,
    world: InWorld = None,
    steps: WorldSteps = None,
    problems: WorldProblems = None,
    problem_seed: WorldSeed = None,
    resume: Resume = False,
    accept: Accept = None,
    allow_overlap: AllowOverlap = False,
) -> None:
    """Run one method over a grid of settings, against a baseline; a table and a figure."""
    from tutelage.comparison import SWEEP_NOTE, Plan, draw_sweep, grid_points, make_methods, parse_grid, run_plan
    from tutelage.config import read_run_file

    values = parse_grid(grid)
    table = read_run_file(run_file)
    points = grid_points(str(table["name"]), values)
    tables = [{**table, "name": point.name} for point in points]
    first = None if baseline is None else read_run_file(baseline)
    folder = output or Path("sweeps") / str(table["name"])
    where = _world(world, folder, steps, problems, problem_seed)
    own = {point.name: point.overrides for point in points}
    plan = Plan(
        folder,
        make_methods(tables if first is None else [first, *tables], overrides or [], where, own),
        range(first_seed, first_seed + seeds),
        checkpoint.value,
        early_steps,
        where.name if where is not None else None,
        [SWEEP_NOTE],
        list(values),
        allow_overlap,
    )
    name = None if first is None else str(first["name"])
    run_plan(
        plan,
        where,
        TextConsole(),
        workers=workers,
        resume=resume,
        accept=accept or [],
        draw=lambda outcome: draw_sweep(outcome, points, values, name, folder / "sweep.png"),
    )


def _world(
    name: str | None, folder: Path, steps: int | None, problems: int | None, problem_seed: int | None
) -> World | None:
    """The world that recipes are put in, if any."""
    from tutelage.comparison import read_world
    from tutelage.demo.embedded import embedded_world

    if name == "embedded":
        return embedded_world(
            folder / "data",
            steps=60 if steps is None else steps,
            num_problems=250 if problems is None else problems,
            seed=problem_seed or 0,
        )
    if (steps, problems, problem_seed) != (None, None, None):
        raise ConfigurationError(
            "--steps, --problems and --problem-seed describe the embedded world, which was not asked for. Add --world "
            "embedded, or use --set steps=N."
        )
    return None if name is None else read_world(Path(name))
