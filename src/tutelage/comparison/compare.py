"""From run files to a table: all checks first, then all runs, then their results."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from tutelage.comparison.inputs import check_inputs
from tutelage.comparison.outcome import Outcome, notes_of, read_outcome, rich_tables, world_notes, write_outcome
from tutelage.comparison.plan import PLAN, Method, Plan, check_comparable, open_folder, shared_texts
from tutelage.comparison.running import default_workers, locked, run_jobs
from tutelage.comparison.worlds import World
from tutelage.config import check_writable
from tutelage.errors import ConfigurationError, DataError, RunInterrupted, TutelageError
from tutelage.runtime import LocalRuntime

__all__ = ["run_plan"]


def run_plan(
    plan: Plan,
    world: World | None,
    console: Console,
    *,
    workers: int | None = None,
    resume: bool = False,
    accept: Sequence[str] = (),
    draw: Callable[[Outcome], Path] | None = None,
) -> Outcome:
    """Run a comparison and make its tables.

    Args:
      workers: runs at once; None = as many as there are cores, or one if they would share an accelerator.
      resume: continue in the folder of `plan`; finished runs are not repeated.
      accept: with `resume`, what may have changed since the comparison began, see `fingerprints.INPUTS`.
      draw: draws one more figure from the finished runs, and returns a line that says where it is.
    Raises:
      ConfigurationError, DataError, OutputExistsError: refused before the first step.
      RunInterrupted: Ctrl-C or SIGTERM; every run was saved.
      TutelageError: runs failed; the others are done, and the table is written.
    """
    if accept and not resume:
        raise ConfigurationError(
            f"--accept {accept[0]} says what may have changed since a comparison began, and this one begins now. Add "
            "--resume, or drop it."
        )
    _check_measurable(plan.methods)
    notes = [f"Not the same for all: {note}." for note in check_comparable(plan.methods, plan.free_keys)]
    plan = replace(plan, notes=[*plan.notes, *notes])
    check_writable(plan.folder)
    devices = {LocalRuntime(method.config.runtime.device).device for method in plan.methods}
    if workers is None:
        workers = default_workers() if devices == {"cpu"} else 1
    is_readable = world is None or not world.files  # problems of the packaged world are written first
    if is_readable:
        plan = _with_overlap(plan)
    with ExitStack() as lock:
        is_begun = (plan.folder / PLAN).is_file()
        if is_begun:  # before anything in it is changed
            lock.enter_context(locked(plan.folder))
        open_folder(plan, world, resume=resume)
        if not is_begun:
            lock.enter_context(locked(plan.folder))
        try:
            if not is_readable:
                plan = _with_overlap(plan)
            check_inputs(plan, accept)
        except Exception:
            if not is_begun:  # so that the corrected command can be run again
                lock.close()
                shutil.rmtree(plan.folder)
            raise
        for note in [*world_notes(plan), *plan.notes]:
            console.print(note, markup=False, soft_wrap=True)
        jobs = [replace(job, accept=accept) for job in plan.jobs()]
        try:
            failed = run_jobs(jobs, console, workers=workers)
        except RunInterrupted as interruption:
            outcome = read_outcome(plan, workers)
            raise RunInterrupted(
                f"{interruption} with {len(jobs) - len(outcome.missing)} of {len(jobs)} runs finished; all are saved "
                f"in {plan.folder}. Continue with the same command and --resume"
            ) from None
        outcome = read_outcome(plan, workers)
        paths = write_outcome(outcome)
        for table in rich_tables(outcome):
            console.print(table)
        for note in notes_of(outcome):
            console.print(f"- {note}", markup=False, soft_wrap=True)
        if draw is not None and any(outcome.summaries.values()):
            paths.append(draw(outcome))
    for path in paths:
        console.print(f"written   {path}", markup=False, soft_wrap=True)
    if failed:
        logs = "; ".join(f"{job.name} (exit code {failed[job.name]}, {job.log})" for job in jobs if job.name in failed)
        raise TutelageError(
            f"{len(failed)} of {len(jobs)} runs failed: {logs}. Read the end of each log, fix what it names, and give "
            "the same command with --resume; finished runs are not repeated."
        )
    return outcome


def _check_measurable(methods: Sequence[Method]) -> None:
    for method in methods:
        if not method.config.evaluation.sets:
            raise ConfigurationError(
                f"{method.name}: evaluation.sets is empty; methods are compared on problems. Add a set for all with "
                "--set 'evaluation.sets=[\"problems.jsonl\"]'."
            )


def _with_overlap(plan: Plan) -> Plan:
    """Refuse evaluation problems that are trained on, or note them."""
    shared = shared_texts(plan.methods[0].config)
    if not shared:
        return plan
    found = f"{len(shared)} evaluation problems are also training prompts, such as {shared[0][:80]!r}"
    if not plan.allows_overlap:
        raise DataError(f"{found}; results on them would not be about new problems. Take them out, or --allow-overlap.")
    return replace(plan, notes=[*plan.notes, f"{found}: the results are partly about problems that were trained on."])
