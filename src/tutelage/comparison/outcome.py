"""What a comparison leaves: comparison.json with every number, comparison.md and the terminal's tables, curves.png."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from tutelage.comparison.measures import Measure, Summary, measure_named, measure_run, summarise_methods
from tutelage.comparison.plan import CHECKPOINT_RULES, Plan
from tutelage.comparison.reaching import costs_of_reaching
from tutelage.comparison.running import default_workers, is_finished
from tutelage.files import write_whole
from tutelage.frames import frame_of
from tutelage.report import RunRecords, plot_methods, read_run

if TYPE_CHECKING:
    from tutelage.frames import DataFrame

__all__ = ["Outcome", "notes_of", "read_outcome", "rich_tables", "world_notes", "write_outcome"]

FEW_PAIRS = 5  # below this many pairs of seeds the reader is warned


@dataclass(frozen=True)
class Outcome:
    """The numbers of all finished runs.

    Fields:
      runs: method -> seed -> measure -> number.
      summaries: method -> measure -> summary over seeds.
      missing: names of the runs that are not finished.
      workers: runs at a time.
    """

    plan: Plan
    runs: Mapping[str, Mapping[int, Mapping[str, float]]]
    summaries: Mapping[str, Mapping[str, Summary]]
    missing: Sequence[str]
    workers: int = 1

    @property
    def measures(self) -> list[str]:
        """The measures that some method has, in the order of tables."""
        return list(dict.fromkeys(name for summaries in self.summaries.values() for name in summaries))

    @property
    def frame(self) -> DataFrame:
        """A row for each method and measure: mean and spread over seeds, the paired difference and its interval.

        Raises:
          ConfigurationError: pandas is not installed.
        """
        return frame_of(
            [
                {"method": method, "measure": measure, **asdict(summary)}
                for method, summaries in self.summaries.items()
                for measure, summary in summaries.items()
            ]
        )

    def as_dict(self) -> dict[str, Any]:
        """Every number, and what is needed to read them, as JSON has it; comparison.json holds the same."""
        plan = self.plan
        return {
            "methods": [method.name for method in plan.methods],
            "seeds": list(plan.seeds),
            "steps": plan.methods[0].config.steps,
            "checkpoint_rule": plan.checkpoint_rule,
            "early_steps": plan.early_steps,
            "world": plan.world,
            "workers": self.workers,
            "machine": {"cores": default_workers(), "machine": platform.machine(), "system": platform.system()},
            "measures": {name: measure_named(name).definition for name in self.measures},
            "runs": self.runs,
            "summaries": {
                name: {measure: asdict(summary) for measure, summary in summaries.items()}
                for name, summaries in self.summaries.items()
            },
            "missing": list(self.missing),
            "notes": [*notes_of(self), *world_notes(plan)],
        }


def read_outcome(plan: Plan, workers: int) -> Outcome:
    """Measure what is finished."""
    runs: dict[str, dict[int, dict[str, float]]] = {}
    references: dict[int, RunRecords] = {}  # seed -> the first method's run
    missing = []
    for place, method in enumerate(plan.methods):
        rollout = method.config.rollout
        runs[method.name] = {}
        for seed in plan.seeds:
            job = plan.job(method, seed)
            if not is_finished(job.folder, job.num_steps):
                missing.append(job.name)
                continue
            records = read_run(job.folder)
            if place == 0:
                references[seed] = records
            measured = measure_run(
                records,
                checkpoint_rule=plan.checkpoint_rule,
                early_steps=plan.early_steps,
                num_rollouts=rollout.prompts_per_step * rollout.samples_per_prompt,
            )
            if seed in references:
                measured |= costs_of_reaching(records, references[seed])
            runs[method.name][seed] = measured
    return Outcome(plan, runs, summarise_methods(runs), missing, workers)


def write_outcome(outcome: Outcome) -> list[Path]:
    """Write the three files; they are derived from the runs, so they, and nothing else, may be replaced."""
    plan = outcome.plan
    json_path, text_path = plan.folder / "comparison.json", plan.folder / "comparison.md"
    write_whole(json_path, json.dumps(outcome.as_dict(), indent=2, allow_nan=False) + "\n")
    write_whole(text_path, _markdown(outcome))
    finished = {
        method.name: [plan.run_folder(method, seed) for seed in outcome.runs[method.name]] for method in plan.methods
    }
    return [
        json_path,
        text_path,
        *([plot_methods(finished, plan.folder / "curves.png")] if any(finished.values()) else []),
    ]


def rich_tables(outcome: Outcome) -> list[Table]:
    """Tables of what was reached, how answers and texts look, and what it cost; differences stand below the numbers."""
    tables = []
    for title, names in _tables(outcome).items():
        table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
        table.add_column("method", overflow="fold")
        for name in names:
            table.add_column(measure_named(name).title, justify="right")
        for method, summaries in outcome.summaries.items():
            cells = ["\n".join(_cell(summaries.get(name), measure_named(name))) for name in names]
            table.add_row(Text(f"{method}\nn {len(outcome.runs[method])}"), *map(Text, cells))
        tables.append(table)
    return tables


def notes_of(outcome: Outcome) -> list[str]:
    """Notes that a reader of the numbers needs."""
    plan, workers = outcome.plan, outcome.workers
    first = plan.methods[0].name
    config = plan.methods[0].config
    evaluation = config.evaluation
    notes = [
        "Numbers are means over seeds ± standard deviation (n - 1). Below them: the paired difference, method less "
        f"{first} with the same seed, and its 95% Student-t interval over seeds.",
        "A seed changes every random draw, and the order of the prompts where data.shuffle is set. Prompts and "
        "problems are the same for all seeds, so the intervals do not cover another choice of them.",
        f"Reported checkpoint: {plan.checkpoint_rule}, {CHECKPOINT_RULES[plan.checkpoint_rule]}.",
        f"pass@1: {evaluation.num_samples} answers per problem at temperature {evaluation.temperature:g}. "
        f"Early rollouts: the first {min(plan.early_steps, config.steps)} of {config.steps} steps.",
        f"Up to {workers} runs at a time shared the machine with one thread each: seconds compare runs with one "
        "another, and are not those of a run that has the machine to itself."
        if workers > 1
        else "One run at a time, with one thread.",
    ]
    pairs = max((s.num_pairs for summaries in outcome.summaries.values() for s in summaries.values()), default=0)
    if len(plan.methods) > 1 and pairs < 2:
        notes.append("Fewer than two pairs of seeds: no interval, and nothing can be said about differences.")
    elif len(plan.methods) > 1 and pairs < FEW_PAIRS:
        notes.append(
            f"Only {pairs} pairs of seeds: intervals are wide or, by luck, far too narrow. Use {FEW_PAIRS} or more."
        )
    if any(len(runs) != len(plan.seeds) for runs in outcome.runs.values()):
        notes.append("Not every run is finished: n differs between methods, and a pair needs both runs of a seed.")
    notes += plan.notes
    if outcome.missing:
        notes.append(f"Not finished: {', '.join(outcome.missing)}.")
    return notes


def world_notes(plan: Plan) -> list[str]:
    """What the world replaced in the run files: for all methods, and what more in each."""
    if plan.world is None:
        return []
    common = [change for change in plan.methods[0].changes if all(change in method.changes for method in plan.methods)]
    notes = [f"In the world {plan.world}, replaced for all: {'; '.join(common)}."]
    for method in plan.methods:
        further = [change for change in method.changes if change not in common]
        if further:
            notes.append(f"Replaced for {method.name}: {'; '.join(further)}.")
    return notes


def _cell(summary: Summary | None, measure: Measure) -> list[str]:
    """Mean and spread, then on lines of their own the difference and its interval."""
    if summary is None:
        return ["-"]

    def shown(value: float, sign: str = "") -> str:
        return format(measure.scale * value, sign + measure.form)

    spread = "" if summary.spread is None else f" ± {shown(summary.spread)}"
    lines = [f"{shown(summary.mean)}{spread}"]
    if summary.difference is not None:
        lines.append(shown(summary.difference, "+"))
    if summary.interval is not None:
        lines.append("[{}, {}]".format(*(shown(end, "+") for end in summary.interval)))
    return lines


def _tables(outcome: Outcome) -> dict[str, list[str]]:
    """Title -> the measures of that table."""
    titles = {"What was reached": "reached", "Answers and texts": "texts", "What it cost": "cost"}
    return {
        title: [name for name in outcome.measures if measure_named(name).about == about]
        for title, about in titles.items()
    }


def _markdown(outcome: Outcome) -> str:
    plan = outcome.plan
    lines = [f"# {', '.join(method.name for method in plan.methods)}", ""]
    for title, names in _tables(outcome).items():
        lines += [f"## {title}", "", f"| method | {' | '.join(measure_named(name).title for name in names)} |"]
        lines.append("|---" * (len(names) + 1) + "|")
        for method, summaries in outcome.summaries.items():
            cells = ["<br>".join(_cell(summaries.get(name), measure_named(name))) for name in names]
            lines.append(f"| {' | '.join([f'{method} (n {len(outcome.runs[method])})', *cells])} |")
        lines += ["", *(f"- {measure_named(name).title}: {measure_named(name).definition}" for name in names), ""]
    notes = [*notes_of(outcome), *world_notes(plan)]
    lines += ["## How to read this", "", *(f"- {note}" for note in notes), ""]
    return "\n".join(lines) + "\n![Learning curves](curves.png)\n"
