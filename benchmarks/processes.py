"""Do several processes make the run that one makes?  TRB on the embedded pair in float64, shared in several ways.

    python benchmarks/processes.py --steps 5

Prints how far each shared run is from that of one process: answers that differ, the largest difference of a loss and of
a weight after the last step. The update of FSDP2 goes through the module's own forward, whose norms are computed in
float32; its differences to ours are rounding of that size.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import tomli_w
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file

from tutelage.demo.embedded import embedded_files, embedded_tables

WAYS: dict[str, tuple[int, list[str]]] = {
    "1 process": (1, []),
    "2 processes, ddp": (2, []),
    "2 processes, fsdp2": (2, ["runtime.strategy=fsdp2"]),
    "2 processes, fsdp2, teacher sharded": (2, ["runtime.strategy=fsdp2", "runtime.shard_teacher=true"]),
    "3 processes, ddp": (3, []),
}


def write_run_file(folder: Path, steps: int) -> Path:
    for path, text in embedded_files(folder, steps=steps, num_problems=1, seed=0).items():
        path.write_text(text)
    tables = embedded_tables(folder, steps=steps, evaluate_every=0)
    tables["student"]["dtype"] = tables["teacher"]["dtype"] = "float64"
    radius = {"schedule": "linear", "start": 0.02, "stop": 0.0, "steps": max(1, steps - 1)}
    tables |= {"policy": {"name": "trust_region", "kl_radius": radius}, "evaluation": {}}
    tables["logging"] = {"samples_per_log": 64, "trackers": []}
    path = folder / "run.toml"
    path.write_text(tomli_w.dumps(tables))
    return path


def train(run_file: Path, output: Path, num_processes: int, overrides: list[str]) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_processes)]
    command = [sys.executable, *(launcher if num_processes > 1 else []), "-m", "tutelage", "train", str(run_file)]
    for override in (f"output={output}", *overrides):
        command += ["--set", override]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def measure(run: Path, alone: Path) -> dict[str, Any]:
    """How far a run is from another one."""
    answers, expected = lines(run / "samples.jsonl"), lines(alone / "samples.jsonl")
    losses = zip(lines(run / "metrics.jsonl"), lines(alone / "metrics.jsonl"), strict=True)
    last = json.loads((alone / "checkpoints" / "index.json").read_text())["last"]
    ours, theirs = (load_file(folder / "checkpoints" / last / "model.safetensors") for folder in (run, alone))
    return {
        "answers": len(answers),
        "answers that differ": sum(a["response"] != b["response"] for a, b in zip(answers, expected, strict=True)),
        "largest difference of a loss": max(abs(a["loss"] - b["loss"]) for a, b in losses),
        "of a weight": max(float(torch.max((ours[name] - theirs[name]).abs())) for name in theirs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--json", type=Path, help="keep the numbers here")
    arguments = parser.parse_args()
    console, found = Console(), {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run_file = write_run_file(folder, arguments.steps)
        for place, (way, (num_processes, overrides)) in enumerate(WAYS.items()):
            with console.status(way):
                train(run_file, folder / str(place), num_processes, overrides)
            found[way] = measure(folder / str(place), folder / "0")
    table = Table("", *next(iter(found.values())))
    for way, numbers in found.items():
        table.add_row(way, *(str(n) if isinstance(n, int) else f"{n:.1e}" for n in numbers.values()))
    console.print(table)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
