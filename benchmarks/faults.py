"""Does a run that is killed at any moment, and resumed, end in the same bytes as an undisturbed one?

    python benchmarks/faults.py --runs 20 --output faults

TRB on the packaged pair, with an evaluation and a checkpoint after every step. The undisturbed run gives the bytes and
the time. Each other run gets SIGKILL at a moment drawn uniformly between a second before the undisturbed run's first
file and a second after its last checkpoint, is resumed, is killed again with a probability of 1/3, and so on, until it
ends by itself. Time is the processor's, where Linux tells it, so that a busy machine shifts no kill. Compared are the
checkpoints (weights, moments, state, index), the samples, and the metrics and evaluations without their seconds. Prints
where the kills struck and how many runs survived; exit code 1 unless all did.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import tomli_w

from tutelage.demo.embedded import embedded_files, embedded_tables

CHANCE_OF_ANOTHER_KILL = 1 / 3
TIMED = ("metrics.jsonl", "evaluations.jsonl")
OF_THE_RUN = ("config.toml", "superseded.jsonl", "curves.png")  # its own folder, the kills, a drawing with seconds


def write_run_file(folder: Path, steps: int) -> Path:
    tables = embedded_tables(folder, steps=steps, evaluate_every=1)
    tables["rollout"] |= {"prompts_per_step": 4, "samples_per_prompt": 2, "max_new_tokens": 40}
    tables["evaluation"]["num_samples"] = 2
    tables["checkpoint"] = {"every": 1}
    tables["logging"] = {"trackers": []}
    radius = {"schedule": "linear", "start": 0.05, "stop": 0.0, "steps": max(1, steps // 2)}
    tables["policy"] = {"name": "trust_region", "kl_radius": radius}
    folder.mkdir(parents=True, exist_ok=True)
    for path, text in embedded_files(folder, steps=steps, num_problems=8, seed=0).items():
        path.write_text(text)
    path = folder / "run.toml"
    path.write_text(tomli_w.dumps({"name": "faults", "seed": 5, **tables}))
    return path


def started(run_file: Path, run: Path) -> subprocess.Popen[bytes]:
    """The run, new or resumed, as a user would start it: by whether its folder is there."""
    command = [sys.executable, "-m", "tutelage", "train", str(run_file), "--set", f"output={run}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with run.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(
            [*command, *(["--resume"] if run.exists() else [])], stdout=log, stderr=log, env=environment
        )


def ended_within(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Whether a process ended before it had worked for that long."""
    since = time.perf_counter()
    while process.poll() is None:
        if worked(process.pid, since) >= seconds:
            return False
        time.sleep(0.01)
    return True


def worked(pid: int, since: float) -> float:
    """Processor seconds of a process; wall-clock seconds since a moment where the system does not say."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return time.perf_counter() - since
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def where_it_struck(run: Path, steps: int) -> str:
    """What the files say that the run was doing."""
    if not run.exists():
        return "before the run's first file (imports, prompts, models)"
    if any(run.glob("checkpoints/.writing-*")):
        return "while a checkpoint was being written"
    if any(run.rglob(".*.partial")):
        return "while another file was being written"
    step, judged = len(lines(run, "metrics.jsonl")), {record["step"] for record in lines(run, "evaluations.jsonl")}
    if step not in judged:
        return "in an evaluation"
    if step == steps:
        return "after the last step"
    return "in a step"


def lines(run: Path, name: str) -> list[dict[str, Any]]:
    """Whole lines of one of the run's files, without seconds."""
    records = []
    for line in (run / name).read_text().splitlines() if (run / name).exists() else []:
        try:
            record = json.loads(line)
        except ValueError:
            continue  # torn by a kill
        records.append({key: value for key, value in record.items() if "second" not in key})
    return records


def content(run: Path) -> dict[str, object]:
    """What must be equal, by name."""
    paths = [path for path in sorted(run.rglob("*")) if path.is_file() and path.name not in OF_THE_RUN]
    return {
        str(path.relative_to(run)): lines(run, path.name) if path.name in TIMED else path.read_bytes() for path in paths
    }


def undisturbed(run_file: Path, run: Path, steps: int) -> tuple[float, float]:
    """Make the undisturbed run; when its work began and ended, in seconds after its start."""
    since, begun, done = time.perf_counter(), 0.0, 0.0
    process = started(run_file, run)
    while process.poll() is None:
        now = worked(process.pid, since)
        begun = begun or (now if run.exists() else 0.0)
        done = done or (now if (run / f"checkpoints/step-{steps:06d}").exists() else 0.0)
        time.sleep(0.01)
    if process.returncode != 0:
        raise SystemExit(f"the undisturbed run failed: see {run.with_suffix('.log')}")
    return begun, done


def disturbed(run_file: Path, run: Path, span: tuple[float, float], steps: int, dice: random.Random) -> list[str]:
    """Kill and resume until the run ends by itself; where the kills struck."""
    struck: list[str] = []
    while True:
        wants_kill = not struck or dice.random() < CHANCE_OF_ANOTHER_KILL
        process = started(run_file, run)
        if wants_kill and not ended_within(process, dice.uniform(*span)):
            process.kill()
            process.wait()
            struck.append(where_it_struck(run, steps))
            continue
        if process.wait() != 0:
            raise SystemExit(f"{run} ended with code {process.returncode}: see {run.with_suffix('.log')}")
        if struck:
            return struck
        shutil.rmtree(run)  # it was faster than its kill


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--output", type=Path, default=Path("faults"), help="a new folder")
    options = parser.parse_args()
    if options.output.exists():
        raise SystemExit(f"{options.output} already exists; choose another with --output.")

    run_file = write_run_file(options.output, options.steps)
    calm = options.output / "undisturbed"
    begun, done = undisturbed(run_file, calm, options.steps)
    expected = content(calm)
    print(
        f"undisturbed: {options.steps} steps from second {begun:.1f} to {done:.1f}, {len(expected)} files to compare",
        flush=True,
    )

    dice, struck, survived = random.Random(options.seed), Counter[str](), 0
    for number in range(options.runs):
        run = options.output / f"run-{number:02d}"
        places = disturbed(run_file, run, (begun - 1, done + 1), options.steps, dice)
        found = content(run)
        different = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        survived += not different
        struck.update(places)
        verdict = "same bytes" if not different else f"DIFFERENT: {', '.join(different)}"
        print(f"run {number:2}: {verdict}; killed {'; '.join(places)}", flush=True)

    print(f"\n{'kills':>5}  where they struck")
    for place, count in sorted(struck.items()):
        print(f"{count:5}  {place}")
    print(f"\n{survived} of {options.runs} killed runs ended in the bytes of the undisturbed one")
    sys.exit(0 if survived == options.runs else 1)


if __name__ == "__main__":
    main()
