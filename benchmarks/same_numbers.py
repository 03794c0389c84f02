"""Does a refactor leave every number as it is?  Small runs at a commit and at the working tree, to the last bit.

    python benchmarks/same_numbers.py main~3
    python benchmarks/same_numbers.py v0.1.0 --only trb lora --keep numbers

Every recipe on the packaged pair for two steps (those with phases among them), and runs with routes, with an
evaluation, in float64, under autocast, resumed, and shared by two processes. Both trees read the run files of the base
commit, in the same interpreter, one thread each, side by side. Compared are metrics and evaluations without their
seconds, samples with their tokens' text, learned weights and the optimizer's moments. Exit code 1 if a number differs
or is gone; what the working tree writes in addition is listed and is no difference.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file

from measuring import ROOT, checked_out, describe, machine
from tutelage.comparison import World
from tutelage.comparison.worlds import in_world
from tutelage.config import read_run_file
from tutelage.demo import student_path
from tutelage.demo.embedded import embedded_files, embedded_tables

STEPS = 2
PAST_SELF = ("target.name=self_past", "target.past_weight=0.5", "reference.refresh_every=2")
SIZES = {"prompts_per_step": 4, "samples_per_prompt": 2, "max_new_tokens": 40}


@dataclass(frozen=True)
class Job:
    """One run of the list: a recipe, what is set on top of it, and how it is run."""

    name: str
    recipe: str
    overrides: tuple[str, ...] = ()
    num_processes: int = 1
    steps_before_resuming: int | None = None


def jobs_of(recipes: Path, files: Path) -> list[Job]:
    """Every recipe, and the ways to run that a recipe does not show."""
    second = files / "second"
    return [
        *(Job(path.stem, path.stem) for path in sorted(recipes.glob("*.toml"))),
        Job("routes", "opd", (f"teacher.routes.second={second}", "data.teacher_column=route")),
        Job("float64, evaluated", "trb", ("student.dtype=float64", "teacher.dtype=float64", "evaluation.every=1")),
        Job("chunked loss", "opd", ("runtime.loss=chunked", "divergence.support=full")),
        Job("tiled loss", "opd", ("runtime.loss=tiled", "divergence.support=full")),
        Job("autocast", "trb", ("runtime.autocast=bfloat16",)),
        Job("autocast, adapter", "lora", ("runtime.autocast=bfloat16",)),
        Job("resumed", "trb", steps_before_resuming=1),
        Job("resumed adapter", "lora", steps_before_resuming=1),
        Job("resumed past self", "opd", PAST_SELF, steps_before_resuming=1),
        Job("resumed past self of an adapter", "lora", PAST_SELF, steps_before_resuming=1),
        Job("two processes", "trb", num_processes=2),
        Job("two processes, fsdp2", "trb", ("runtime.strategy=fsdp2",), num_processes=2),
    ]


def write_run_files(folder: Path, recipes: Path) -> None:
    """The base commit's recipes, moved to the packaged pair, and what they read."""
    tables = embedded_tables(folder, steps=STEPS, evaluate_every=0)
    tables["rollout"] |= SIZES
    tables["evaluation"] |= {"num_samples": 2}
    tables["checkpoint"] = {"every": 1}
    tables["logging"] = {"samples_per_log": 8, "trackers": [], "diagnostics_every": 1}
    files = embedded_files(folder, steps=STEPS, num_problems=4, seed=0)
    for path, text in files.items():
        rows = [json.loads(line) for line in text.splitlines()]
        if path.stem == "prompts":  # every second row for another teacher, where a run asks for it
            rows = [{**row, "route": "second" if place % 2 else None} for place, row in enumerate(rows)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for path in recipes.glob("*.toml"):
        moved, _ = in_world(read_run_file(path), World("small", tables, files))
        (folder / path.name).write_text(tomli_w.dumps(moved))
    shutil.copytree(student_path(), folder / "second")  # a teacher must not be the student itself


def run_job(job: Job, tree: Path, files: Path, output: Path) -> str | None:
    """Run a job with the source of a tree; the end of what it printed, if it failed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tree / "src"), "HF_HUB_OFFLINE": "1"}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(job.num_processes)]
    command = [sys.executable, *(launcher if job.num_processes > 1 else []), "-m", "tutelage", "train"]
    command.append(str(files / f"{job.recipe}.toml"))
    for override in (f"output={output}", *job.overrides):
        command += ["--set", override]
    parts = [command]
    if job.steps_before_resuming is not None:
        parts = [[*command, "--set", f"steps={job.steps_before_resuming}"], [*command, "--resume"]]
    for part in parts:
        done = subprocess.run(part, capture_output=True, text=True, env=environment)
        if done.returncode:
            return (done.stdout + done.stderr)[-2000:]
    return None


# What a run left ------------------------------------------------------------------------------------------------------


def numbers_of(run: Path) -> dict[str, Any]:
    """Everything of a run that must stay: name -> a number, a text, or a tensor."""
    found: dict[str, Any] = {}
    for path in sorted(run.rglob("*.jsonl")):
        for place, line in enumerate(path.read_text().splitlines()):
            found.update(_leaves(json.loads(line), f"{path.relative_to(run)} line {place + 1}"))
    for path in sorted(run.rglob("*.safetensors")):
        found.update(_leaves(load_file(path), str(path.relative_to(run))))
    for path in sorted(run.rglob("*.pt")):
        found.update(_leaves(torch.load(path, weights_only=True), str(path.relative_to(run))))
    return {name: value for name, value in found.items() if not _is_time(name)}


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{name}: {key}")
    elif isinstance(value, list | tuple):
        for place, inner in enumerate(value):
            yield from _leaves(inner, f"{name}[{place}]")
    else:
        yield name, value


def _is_time(name: str) -> bool:
    return "second" in name.rpartition(":")[2]


def differences(base: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What is gone or differs, a line each."""
    found = []
    for name, before in base.items():
        if name not in now:
            found.append(f"{name} is gone")
        elif not _is_same(before, now[name]):
            found.append(f"{name}: {_shown(before)}, now {_shown(now[name])}")
    return found


def _is_same(before: Any, after: Any) -> bool:
    if isinstance(before, torch.Tensor):
        is_alike = isinstance(after, torch.Tensor) and before.dtype == after.dtype and before.shape == after.shape
        return is_alike and torch.equal(_bits_of(before), _bits_of(after))
    return bool(before == after) or (before != before and after != after)


def _bits_of(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().flatten().view(torch.uint8)


def _shown(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{value.dtype} {list(value.shape)} of norm {value.double().norm():.17g}"
    return repr(value)[:80]


# --------------------------------------------------------------------------------------------------------------------


def compare(job: Job, trees: Mapping[str, Path], files: Path, folder: Path) -> tuple[list[str], int, list[str]]:
    """A job's differences, how many numbers were compared, and what is new."""
    outputs = {name: folder / name / job.name.replace(" ", "-").replace(",", "") for name in trees}
    with ThreadPoolExecutor(len(trees)) as side_by_side:
        failures = list(side_by_side.map(lambda name: run_job(job, trees[name], files, outputs[name]), trees))
    if any(failures):
        which = " and ".join(name for name, failure in zip(trees, failures, strict=True) if failure)
        return [f"the run failed at {which}: {next(filter(None, failures))}"], 0, []
    base, now = (numbers_of(outputs[name]) for name in trees)
    return differences(base, now), len(base), sorted({name.rpartition(":")[2] for name in now.keys() - base.keys()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="a commit, such as main~3")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="some of the runs")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="a new folder that keeps both trees' runs")
    arguments = parser.parse_args()
    console = Console(highlight=False, width=120)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) if arguments.keep is None else arguments.keep.absolute()
        folder.mkdir(exist_ok=arguments.keep is None)
        with checked_out(arguments.base) as base:
            files = folder / "files"
            files.mkdir()
            write_run_files(files, base / "recipes")
            known = jobs_of(base / "recipes", files)
            unknown = set(arguments.only or ()) - {job.name for job in known}
            if unknown:
                sys.exit(f"no run is called {', '.join(sorted(unknown))}; there are {', '.join(j.name for j in known)}")
            differing = report(
                [job for job in known if not arguments.only or job.name in arguments.only],
                {"base": base, "now": ROOT},
                files,
                folder,
                console,
            )
    console.print(describe(machine()))
    sys.exit(1 if differing else 0)


def report(jobs: list[Job], trees: Mapping[str, Path], files: Path, folder: Path, console: Console) -> bool:
    """Run all, print a line for each; whether anything differs."""
    table = Table("run", "numbers", "result")
    all_found, new = [], set[str]()
    for job in jobs:
        with console.status(job.name):
            found, count, added = compare(job, trees, files, folder)
        new.update(added)
        all_found += [f"{job.name}: {line}" for line in found[:5]]
        table.add_row(job.name, str(count), "same" if not found else f"{len(found)} differ")
    console.print(table)
    for line in all_found:
        console.print(line, markup=False)
    if new:
        console.print(f"new: {', '.join(sorted(new))}", markup=False)
    return bool(all_found)


if __name__ == "__main__":
    main()
