"""The demo: plain OPD and TRB on the embedded pair, side by side, with a table and a figure at the end.

Both runs are ordinary `tutelage train` runs of run files that stay in the demo's folder, so everything seen here can be
repeated and changed by hand. They run as two processes of one thread each, which two cores finish sooner than one run
after the other on two threads.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tomli_w
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tutelage.comparison import Job, default_workers, records_of, run_jobs
from tutelage.demo import make_problems
from tutelage.demo.embedded import (
    PROBLEM_SEED,
    PROMPTS_PER_STEP,
    SAMPLES_PER_PROMPT,
    embedded_files,
    embedded_tables,
)
from tutelage.errors import OutputExistsError, TutelageError
from tutelage.files import write_whole
from tutelage.report import plot_runs, read_jsonl

__all__ = ["Demonstrated", "demo_run_file", "run_demo"]

KL_RADIUS, HORIZON = 0.05, 25
EARLY_STEPS = 10
EVALUATE_EVERY = 20


@dataclass(frozen=True)
class Method:
    """One of the compared runs."""

    name: str
    title: str
    policy: dict[str, Any]


METHODS = (
    Method("opd", "plain OPD", {"name": "student"}),
    Method(
        "trb",
        f"TRB (budget {KL_RADIUS}, horizon {HORIZON})",
        {
            "name": "trust_region",
            "kl_radius": {"schedule": "linear", "start": KL_RADIUS, "stop": 0.0, "steps": HORIZON},
        },
    ),
)


def demo_run_file(method: Method, folder: Path, *, steps: int, seed: int) -> dict[str, Any]:
    """The run file of one method, as a table; prompts and problems are expected in `folder`."""
    return {
        "name": method.name,
        "output": str(folder / method.name),
        "seed": seed,
        "policy": method.policy,
        "target": {"name": "teacher"},
        "divergence": {"name": "reverse_kl", "support": "student_top_k", "top_k": 16, "rest": "tail"},
        **embedded_tables(folder, steps=steps, evaluate_every=EVALUATE_EVERY),
    }


@dataclass(frozen=True)
class Demonstrated:
    """What the demo has seen.

    Fields:
      folder, figure: of both runs.
      methods: method -> its numbers by name; None where it has none, as without drafts.
      seconds: that it took.
    """

    folder: Path
    figure: Path
    methods: Mapping[str, Mapping[str, float | None]]
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON has it."""
        return {**asdict(self), "folder": str(self.folder), "figure": str(self.figure)}


def run_demo(output: Path | None, console: Console, *, steps: int, num_problems: int, seed: int) -> Demonstrated:
    """Train both methods, evaluate both on fresh problems, and print on `console` what was seen."""
    folder = output or _next_free_folder(Path("demo-runs"))
    if folder.exists():
        raise OutputExistsError(f"the demo's folder {folder} already exists; nothing is overwritten. Choose another.")
    folder.mkdir(parents=True)
    for path, content in embedded_files(folder, steps=steps, num_problems=num_problems, seed=seed).items():
        write_whole(path, content)
    console.print(
        Text.assemble(
            f"A tiny teacher and a tiny, drifting student solve word problems: {steps} steps of {PROMPTS_PER_STEP} "
            f"prompts x {SAMPLES_PER_PROMPT} rollouts,\nonce as plain on-policy distillation (OPD), once with a "
            "trust-region warm-up (TRB).\nOne problem: ",
            (make_problems(1, PROBLEM_SEED + seed)[0].problem, "dim"),
            "\n",
        )
    )
    started = time.perf_counter()
    for method in METHODS:
        table = demo_run_file(method, folder, steps=steps, seed=seed)
        write_whole(folder / f"{method.name}.toml", tomli_w.dumps(table))
    _train_all(folder, steps, console)
    figure = plot_runs({method.title: folder / method.name for method in METHODS}, folder / "curves.png")

    numbers = {method.name: _numbers(folder / method.name) for method in METHODS}
    console.print(_results(numbers))
    console.print(_excerpts(folder), soft_wrap=False)
    console.print(
        "One seed, one tiny pair: TRB's early rollouts are what it promises; whether the final pass@1 differs needs "
        "several seeds (the intervals are over problems only)."
    )
    console.print(f"\nfigure      {figure}\nrun folders {folder}", soft_wrap=True)
    seconds = time.perf_counter() - started
    console.print(f"took        {seconds:.0f} s after set-up")
    return Demonstrated(folder, figure, numbers, seconds)


def _next_free_folder(parent: Path) -> Path:
    return next(parent / str(number) for number in range(1, 10_000) if not (parent / str(number)).exists())


def _train_all(folder: Path, steps: int, console: Console) -> None:
    """Run the methods as processes, as many at once as there are cores, and show how far they are."""
    files = {name: folder / f"{name}.toml" for name in (method.name for method in METHODS)}
    jobs = [Job(name, file, folder / name, file.with_suffix(".log"), steps) for name, file in files.items()]
    for name in run_jobs(jobs, console, workers=default_workers()):
        log = folder / f"{name}.log"
        last = (log.read_text(errors="replace").splitlines() or ["nothing"])[-1]
        raise TutelageError(f"the {name} run failed; the last line of {log} says: {last}")


def _numbers(run: Path) -> dict[str, float | None]:
    """What one run has reached, by the names of its metrics; early: the mean over its first steps."""
    evaluations, metrics = records_of(run / "evaluations.jsonl"), records_of(run / "metrics.jsonl")
    early, drafted = metrics[:EARLY_STEPS], [record for record in metrics if "acceptance_rate" in record]
    low, high = evaluations[-1]["pass_at_1_interval"]
    return {
        "pass_at_1_before": evaluations[0]["pass_at_1"],
        "pass_at_1_after": evaluations[-1]["pass_at_1"],
        "pass_at_1_low": low,
        "pass_at_1_high": high,
        "early_reward": _mean(early, "reward"),
        "early_teacher_logprob": _mean(early, "teacher_logprob"),
        "acceptance_rate": _mean(drafted, "acceptance_rate"),
        "tokens_per_teacher_forward": _mean(drafted, "tokens_per_teacher_forward"),
        "seconds_per_step": _mean(metrics, "seconds"),
    }


def _results(numbers: Mapping[str, Mapping[str, float | None]]) -> Table:
    """Quantities as rows and methods as columns, which fits a narrow terminal."""
    table = Table(title="What was seen", title_justify="left")
    table.add_column("")
    for method in METHODS:
        table.add_column(method.title, justify="right")
    rows = {
        "pass@1 before": "{pass_at_1_before:.1%}",
        "pass@1 after": "{pass_at_1_after:.1%}",
        "  95% interval": "{pass_at_1_low:.1%} to {pass_at_1_high:.1%}",
        f"first {EARLY_STEPS} steps: correct": "{early_reward:.1%}",
        "  teacher log-prob per token": "{early_teacher_logprob:.2f}",
        "drafts kept in the warm-up": "{acceptance_rate:.1%}",
        "  tokens per teacher forward": "{tokens_per_teacher_forward:.2f}",
        "seconds per step": "{seconds_per_step:.2f}",
    }
    for name, form in rows.items():
        of_methods = [numbers[method.name] for method in METHODS]
        table.add_row(name, *("-" if _lacks(form, own) else form.format(**own) for own in of_methods))
    return table


def _lacks(form: str, numbers: Mapping[str, float | None]) -> bool:
    return any(value is None for name, value in numbers.items() if f"{{{name}:" in form)


def _mean(records: Sequence[dict[str, Any]], name: str) -> float | None:
    """None without records."""
    return float(sum(record[name] for record in records)) / len(records) if records else None


def _excerpts(folder: Path) -> Table:
    """The same problems and the same random numbers, before and after."""
    problems = {problem["id"]: problem for problem in read_jsonl(folder / "problems.jsonl")}
    samples = {method.name: _evaluation_samples(folder / method.name) for method in METHODS}
    table = Table(title="Three problems, same random numbers", title_justify="left", show_lines=True)
    for heading in ("problem", "untrained student", *(f"after {method.name.upper()}" for method in METHODS)):
        table.add_column(heading, ratio=1)
    before = samples[METHODS[0].name][0]
    for key in list(before)[:: max(1, len(before) // 3)][:3]:
        shown = [before[key], *(samples[method.name][1][key] for method in METHODS)]
        problem = problems[key[0]]
        table.add_row(Text(f"{problem['problem']} ({problem['answer']})"), *(_shown(sample) for sample in shown))
    return table


def _evaluation_samples(run: Path) -> tuple[dict[tuple[str, int], Any], dict[tuple[str, int], Any]]:
    """First and last evaluation of a run, by problem and sample."""
    files = sorted((run / "evaluations").glob("step-*.jsonl"))
    first, last = (
        {(sample["problem_id"], sample["sample_index"]): sample for sample in read_jsonl(path)}
        for path in (files[0], files[-1])
    )
    return first, last


def _shown(sample: dict[str, Any]) -> Text:
    mark = "right" if sample["correct"] else "wrong" if sample["finished"] else "wrong, cut"
    return Text.assemble(sample["response"].strip(), " ", (mark, "green" if sample["correct"] else "red"))
