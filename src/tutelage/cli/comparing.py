"""`tutelage compare` and `tutelage sweep`: which method, which settings? Reads arguments, calls `api.comparing`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
from tutelage.cli.output import AsJson, print_document

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
    as_json: AsJson = False,
) -> None:
    """Compare methods fairly: same prompts and problems, several seeds, paired differences, cost."""
    from tutelage.api.comparing import compare as run_comparison

    outcome = run_comparison(
        run_files,
        overrides,
        seeds=seeds,
        output=output,
        first_seed=first_seed,
        workers=workers,
        checkpoint=checkpoint.value,
        early_steps=early_steps,
        world=world,
        steps=steps,
        problems=problems,
        problem_seed=problem_seed,
        resume=resume,
        accept=accept or [],
        allow_overlap=allow_overlap,
        progress=not as_json,
    )
    if as_json:
        print_document(outcome.as_dict())


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
    as_json: AsJson = False,
) -> None:
    """Run one method over a grid of settings, against a baseline; a table and a figure."""
    from tutelage.api.comparing import sweep as run_sweep

    outcome = run_sweep(
        run_file,
        grid,
        overrides,
        baseline=baseline,
        seeds=seeds,
        output=output,
        first_seed=first_seed,
        workers=workers,
        checkpoint=checkpoint.value,
        early_steps=early_steps,
        world=world,
        steps=steps,
        problems=problems,
        problem_seed=problem_seed,
        resume=resume,
        accept=accept or [],
        allow_overlap=allow_overlap,
        progress=not as_json,
    )
    if as_json:
        print_document(outcome.as_dict())
