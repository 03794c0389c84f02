"""The demo: plain OPD and TRB on the embedded pair, side by side, with a table and a figure at the end.

Both runs are ordinary `tutelage train` runs of run files that stay in the demo's folder, so everything seen here can be
repeated and changed by hand. They run as two processes of one thread each, which two cores finish sooner than one run
after the other on two threads.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from tutelage.demo import make_problems, student_path, teacher_path, write_problems
from tutelage.errors import OutputExistsError, TutelageError
from tutelage.report import plot_runs, read_jsonl

__all__ = ["demo_run_file", "run_demo"]

PROMPTS_PER_STEP, SAMPLES_PER_PROMPT = 16, 4
KL_RADIUS, HORIZON = 0.05, 25
EARLY_STEPS = 10
# The models were trained on other seeds than these, see `make_pair`.
PROMPT_SEED, PROBLEM_SEED = 71_000, 72_000


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
        "steps": steps,
        "student": {"path": str(student_path())},
        "teacher": {"path": str(teacher_path())},
        "data": {"path": str(folder / "prompts.jsonl")},
        "policy": method.policy,
        "target": {"name": "teacher"},
        "divergence": {"name": "reverse_kl", "support": "student_top_k", "top_k": 16, "rest": "tail"},
        "rollout": {
            "prompts_per_step": PROMPTS_PER_STEP,
            "samples_per_prompt": SAMPLES_PER_PROMPT,
            "max_new_tokens": 90,
            "score_tokens": 2048,
        },
        "optimizer": {"learning_rate": 2e-4},
        "checkpoint": {"every": 20},
        "evaluation": {
            "sets": [{"path": str(folder / "problems.jsonl"), "name": "fresh problems"}],
            "every": 20,
            "num_samples": 4,
        },
        "runtime": {"device": "cpu", "threads": 1, "micro_batch_tokens": 2048},
    }


def run_demo(output: Path | None, *, steps: int, num_problems: int, seed: int) -> None:
    """Train both methods, evaluate both on fresh problems, and print what was seen."""
    console = Console(highlight=False)
    folder = output or _next_free_folder(Path("demo-runs"))
    if folder.exists():
        raise OutputExistsError(f"the demo's folder {folder} already exists; nothing is overwritten. Choose another.")
    folder.mkdir(parents=True)
    write_problems(folder / "prompts.jsonl", steps * PROMPTS_PER_STEP, PROMPT_SEED + seed)
    write_problems(folder / "problems.jsonl", num_problems, PROBLEM_SEED + seed)
    console.print(
        f"A tiny teacher and a tiny, drifting student solve word problems: {steps} steps of {PROMPTS_PER_STEP} prompts "
        f"x {SAMPLES_PER_PROMPT} rollouts,\nonce as plain on-policy distillation (OPD), once with a trust-region "
        f"warm-up (TRB).\nOne problem: [dim]{escape(make_problems(1, PROBLEM_SEED + seed)[0].problem)}[/]\n"
    )
    started = time.perf_counter()
    for method in METHODS:
        table = demo_run_file(method, folder, steps=steps, seed=seed)
        (folder / f"{method.name}.toml").write_text(tomli_w.dumps(table))
    _train_all(folder, steps, console)
    figure = plot_runs({method.title: folder / method.name for method in METHODS}, folder / "curves.png")

    console.print(_results(folder))
    console.print(_excerpts(folder), soft_wrap=False)
    console.print(
        "One seed, one tiny pair: TRB's early rollouts are what it promises; whether the final pass@1 differs needs "
        "several seeds (the intervals are over problems only)."
    )
    console.print(f"\nfigure      {figure}\nrun folders {folder}", soft_wrap=True)
    console.print(f"took        {time.perf_counter() - started:.0f} s after set-up")


def _next_free_folder(parent: Path) -> Path:
    return next(parent / str(number) for number in range(1, 10_000) if not (parent / str(number)).exists())


def _train_all(folder: Path, steps: int, console: Console) -> None:
    """Run the methods as processes, as many at once as there are cores, and show how far they are."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    waiting, running = list(METHODS), dict[str, subprocess.Popen[bytes]]()
    progress = Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=10),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )
    bars = {method.name: progress.add_task(method.name, total=steps, figures="waiting") for method in METHODS}
    last_line = dict.fromkeys(bars, 0)
    try:
        with progress:
            while waiting or running:
                while waiting and len(running) < max(1, os.cpu_count() or 1):
                    method = waiting.pop(0)
                    command = [sys.executable, "-m", "tutelage", "train", str(folder / f"{method.name}.toml")]
                    with (folder / f"{method.name}.log").open("wb") as log:
                        running[method.name] = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
                    progress.update(bars[method.name], figures="starting")
                for name, process in list(running.items()):
                    text, done = _status(folder / name)
                    progress.update(bars[name], completed=done, figures=text)
                    if not console.is_terminal and done >= last_line[name] + 10:
                        last_line[name] = done
                        console.print(f"{name} step {done}/{steps}  {text}")
                    if process.poll() is not None:
                        del running[name]
                        if process.returncode != 0:
                            log_text = (folder / f"{name}.log").read_text()[-2000:]
                            raise TutelageError(f"the {name} run failed:\n{log_text}")
                time.sleep(0.5)
    finally:
        for process in running.values():
            process.terminate()


def _status(run: Path) -> tuple[str, int]:
    metrics = _lines(run / "metrics.jsonl")
    evaluations = _lines(run / "evaluations.jsonl")
    if not metrics:
        return ("evaluating the untrained student" if run.exists() else "starting"), 0
    last = metrics[-1]
    parts = [f"loss {last['loss']:.2f}", f"reward {last['reward']:.2f}"]
    if evaluations:
        parts.append(f"pass@1 {100 * evaluations[-1]['pass_at_1']:.1f}%")
    if "blend_mean" in last:
        parts.append(f"beta {last['blend_mean']:.2f}")
    return "  ".join(parts), len(metrics)


def _lines(path: Path) -> list[dict[str, Any]]:
    return read_jsonl(path) if path.exists() and path.stat().st_size else []


def _results(folder: Path) -> Table:
    """Quantities as rows and methods as columns, which fits a narrow terminal."""
    table = Table(title="What was seen", title_justify="left")
    table.add_column("")
    columns = []
    for method in METHODS:
        table.add_column(method.title, justify="right")
        evaluations = _lines(folder / method.name / "evaluations.jsonl")
        metrics = _lines(folder / method.name / "metrics.jsonl")
        early = metrics[:EARLY_STEPS]
        drafted = [record for record in metrics if "acceptance_rate" in record]
        low, high = evaluations[-1]["pass_at_1_interval"]
        columns.append(
            {
                "pass@1 before": f"{100 * evaluations[0]['pass_at_1']:.1f}%",
                "pass@1 after": f"{100 * evaluations[-1]['pass_at_1']:.1f}%",
                "  95% interval": f"{100 * low:.1f} to {100 * high:.1f}",
                f"first {EARLY_STEPS} steps: correct": f"{100 * _mean(early, 'reward'):.1f}%",
                "  teacher log-prob per token": f"{_mean(early, 'teacher_logprob'):.2f}",
                "drafts kept in the warm-up": f"{100 * _mean(drafted, 'acceptance_rate'):.1f}%" if drafted else "-",
                "  tokens per teacher forward": (
                    f"{_mean(drafted, 'tokens_per_teacher_forward'):.2f}" if drafted else "-"
                ),
                "seconds per step": f"{_mean(metrics, 'seconds'):.2f}",
            }
        )
    for name in columns[0]:
        table.add_row(name, *(column[name] for column in columns))
    return table


def _mean(records: Sequence[dict[str, Any]], name: str) -> float:
    return float(sum(record[name] for record in records)) / len(records)


def _excerpts(folder: Path) -> Table:
    """The same problems and the same random numbers, before and after."""
    problems = {json.loads(line)["id"]: json.loads(line) for line in (folder / "problems.jsonl").open()}
    samples = {method.name: _evaluation_samples(folder / method.name) for method in METHODS}
    table = Table(title="Three problems, same random numbers", title_justify="left", show_lines=True)
    for heading in ("problem", "untrained student", *(f"after {method.name.upper()}" for method in METHODS)):
        table.add_column(heading, ratio=1)
    before = samples[METHODS[0].name][0]
    for key in list(before)[:: max(1, len(before) // 3)][:3]:
        shown = [before[key], *(samples[method.name][1][key] for method in METHODS)]
        problem = problems[key[0]]
        table.add_row(escape(f"{problem['problem']} ({problem['answer']})"), *(_shown(sample) for sample in shown))
    return table


def _evaluation_samples(run: Path) -> tuple[dict[tuple[str, int], Any], dict[tuple[str, int], Any]]:
    """First and last evaluation of a run, by problem and sample."""
    files = sorted((run / "evaluations").glob("step-*.jsonl"))
    first, last = (
        {(sample["problem_id"], sample["sample_index"]): sample for sample in read_jsonl(path)}
        for path in (files[0], files[-1])
    )
    return first, last


def _shown(sample: dict[str, Any]) -> str:
    mark = "[green]right[/]" if sample["correct"] else "[red]wrong[/]" if sample["finished"] else "[red]wrong, cut[/]"
    return f"{escape(sample['response'].strip())} {mark}"
