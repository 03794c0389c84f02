"""Which method, which settings?  Comparisons and sweeps over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack

from tutelage.api.arguments import Overrides, RunFile, check_numbers, options_of
from tutelage.comparison import (
    CHECKPOINT_RULES,
    SWEEP_NOTE,
    Outcome,
    Plan,
    World,
    draw_sweep,
    grid_points,
    make_methods,
    parse_grid,
    read_world,
    run_plan,
)
from tutelage.config import grid_texts, override_texts, read_run_file
from tutelage.demo.embedded import embedded_world
from tutelage.display import TextConsole
from tutelage.errors import ConfigurationError

__all__ = ["ComparisonOptions", "compare", "sweep"]

EMBEDDED_STEPS, EMBEDDED_PROBLEMS = 60, 250


class ComparisonOptions(TypedDict, total=False):
    """How methods are compared; what is left out is as in `DEFAULTS`.

    Keys:
      first_seed: the first of the seeds.
      workers: runs at once; None = as many as there are cores, or one if they would share an accelerator.
      checkpoint: "last" or "best", which weights of a run are reported.
      early_steps: first steps whose rollouts are judged.
      world: replaces models, prompts, problems and sizes: "embedded" (the packaged pair), or a TOML file.
      steps, problems, problem_seed: of the embedded world; None = 60, 250 and 0.
      resume: continue in the output folder; finished runs stay.
      accept: with `resume`, what may have changed since the comparison began.
      allow_overlap: evaluate on prompts that are trained on.
      progress: show the runs, and the tables at the end.
    """

    first_seed: int
    workers: int | None
    checkpoint: str
    early_steps: int
    world: str | Path | None
    steps: int | None
    problems: int | None
    problem_seed: int | None
    resume: bool
    accept: Sequence[str]
    allow_overlap: bool
    progress: bool


DEFAULTS: ComparisonOptions = {
    "first_seed": 0,
    "workers": None,
    "checkpoint": "last",
    "early_steps": 10,
    "world": None,
    "steps": None,
    "problems": None,
    "problem_seed": None,
    "resume": False,
    "accept": (),
    "allow_overlap": False,
    "progress": True,
}


def compare(
    run_files: Sequence[RunFile],
    overrides: Overrides | None = None,
    *,
    seeds: int = 5,
    output: str | Path | None = None,
    **options: Unpack[ComparisonOptions],
) -> Outcome:
    """Compare methods fairly: same prompts and problems, several seeds, paired differences, cost.

    Args:
      run_files: paths or tables; the first is what the others are compared with.
      overrides: for all, or of one method: {"steps": 100, "trb:policy.kl_radius.start": 0.05}.
      seeds: how many every method is run with.
      output: folder of the comparison; None = comparisons/NAME-NAME.
      options: see `ComparisonOptions`.
    Raises:
      ConfigurationError, DataError, OutputExistsError: refused before the first step.
      RunInterrupted: Ctrl-C or SIGTERM; every run was saved.
      TutelageError: runs failed; the others are done, and the table is written.
    """
    asked = _asked(options, seeds)
    tables = [read_run_file(each) for each in run_files]
    folder = Path(output or Path("comparisons") / "-".join(str(table["name"]) for table in tables))
    world = _world(asked, folder)
    methods = make_methods(tables, override_texts(overrides or ()), world)
    return _run(Plan(folder, methods, **_settings(asked, seeds, world)), world, asked)


def sweep(
    run_file: RunFile,
    grid: Mapping[str, Sequence[Any]] | Sequence[str],
    overrides: Overrides | None = None,
    *,
    baseline: RunFile | None = None,
    seeds: int = 3,
    output: str | Path | None = None,
    **options: Unpack[ComparisonOptions],
) -> Outcome:
    """Run one method over a grid of settings, against a baseline; a table and a figure.

    Args:
      grid: {"policy.kl_radius": [0.01, 0.02], ...}; every combination is run. The first key is drawn on x.
      baseline: a run file that every setting is compared with.
      output: None = sweeps/NAME.
      run_file, overrides, seeds, options: as `compare` takes them; what it raises is raised here, too.
    """
    asked = _asked(options, seeds)
    values = parse_grid(grid_texts(grid))
    table = read_run_file(run_file)
    points = grid_points(str(table["name"]), values)
    tables = [{**table, "name": point.name} for point in points]
    first = None if baseline is None else read_run_file(baseline)
    folder = Path(output or Path("sweeps") / str(table["name"]))
    world = _world(asked, folder)
    own = {point.name: point.overrides for point in points}
    tables = tables if first is None else [first, *tables]
    methods = make_methods(tables, override_texts(overrides or ()), world, own)
    plan = Plan(folder, methods, **_settings(asked, seeds, world), notes=[SWEEP_NOTE], free_keys=list(values))
    name = None if first is None else str(first["name"])

    def draw(outcome: Outcome) -> Path:
        return draw_sweep(outcome, points, values, name, folder / "sweep.png")

    return _run(plan, world, asked, draw=draw)


def _asked(options: Mapping[str, Any], seeds: int) -> dict[str, Any]:
    check_numbers({"seeds": seeds})
    asked = options_of(DEFAULTS, options)
    if asked["checkpoint"] not in CHECKPOINT_RULES:
        raise ConfigurationError(
            f"checkpoint is {asked['checkpoint']!r}; expected one of {', '.join(CHECKPOINT_RULES)}."
        )
    return asked


def _settings(asked: Mapping[str, Any], seeds: int, world: World | None) -> dict[str, Any]:
    return {
        "seeds": range(asked["first_seed"], asked["first_seed"] + seeds),
        "checkpoint_rule": asked["checkpoint"],
        "early_steps": asked["early_steps"],
        "world": None if world is None else world.name,
        "allows_overlap": asked["allow_overlap"],
    }


def _run(plan: Plan, world: World | None, asked: Mapping[str, Any], **more: Any) -> Outcome:
    console = TextConsole(quiet=not asked["progress"])
    settings = {name: asked[name] for name in ("workers", "resume", "accept")}
    return run_plan(plan, world, console, **settings, **more)


def _world(asked: Mapping[str, Any], folder: Path) -> World | None:
    """The world that run files are put in, if any."""
    name, steps, problems, problem_seed = (asked[key] for key in ("world", "steps", "problems", "problem_seed"))
    if name == "embedded":
        return embedded_world(
            folder / "data",
            steps=EMBEDDED_STEPS if steps is None else steps,
            num_problems=EMBEDDED_PROBLEMS if problems is None else problems,
            seed=problem_seed or 0,
        )
    if (steps, problems, problem_seed) != (None, None, None):
        raise ConfigurationError(
            "--steps, --problems and --problem-seed describe the embedded world, which was not asked for. Add --world "
            "embedded, or use --set steps=N."
        )
    return None if name is None else read_world(Path(name))
