"""How long does a run with many prompts take to start, now and at another commit, and are its tokens the same?

    python benchmarks/start.py [--prompts 100000] [--base COMMIT] [--rounds 1] [--json FILE]

Measured is the part that grows with the data (reading the file, writing every prompt out through the chat templates of
student and teacher, the packaged pair, and tokenising it), and the whole command `tutelage train` for one step with one
short answer, loading of libraries included. Each is a process of its own, on as many threads as the machine has. The
other commit is checked out beside this one; both take turns. Exit code 1 if any token differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.table import Table

from measuring import (
    ROOT,
    Measurement,
    Results,
    checked_out,
    describe,
    machine,
    middle,
    ratio,
    wide_console,
    write_json,
)

SMALL = ("rollout.prompts_per_step=1", "rollout.samples_per_prompt=1", "rollout.max_new_tokens=4", "runtime.device=cpu")
# Run with the source of either commit, so it uses nothing but what both have.
READING = """
import hashlib, json, resource, sys, time
from tutelage import config as parts
config = parts.load_config(sys.argv[1])
if hasattr(parts, "RunAssembly"):
    run = parts.RunAssembly(config)
    run.tokenizers
    read = lambda: run.prompts.prompts
else:  # a commit before assemblies
    tokenizers = parts.load_tokenizers(config)
    read = lambda: parts.read_prompts(config.data, *tokenizers).prompts
wall, cpu = time.perf_counter(), time.process_time()
prompts = read()
seconds, processor = time.perf_counter() - wall, time.process_time() - cpu
digest = hashlib.sha256()
for prompt in prompts:
    teacher = None if prompt.teacher_tokens is None else list(prompt.teacher_tokens)
    digest.update(json.dumps([list(prompt.student_tokens), teacher]).encode())
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"seconds": seconds, "cpu_seconds": processor, "peak_mib": peak,
                  "tokens": sum(len(p.student_tokens) for p in prompts), "digest": digest.hexdigest()}))
"""


def write_run_file(folder: Path, num_prompts: int) -> Path:
    """Short sums with ids and answers, the same for every commit."""
    pick = random.Random(0)
    assets = ROOT / "src" / "tutelage" / "demo" / "assets"
    with (folder / "prompts.jsonl").open("w") as file:
        for number in range(num_prompts):
            eggs, sold = pick.randrange(50, 1000), pick.randrange(2, 50)
            text = f"{pick.choice(('Tom', 'Ana', 'Dan'))} has {eggs} eggs and sells {sold}. How many eggs are left?"
            row = {"id": f"sum/{number}", "problem": text, "answer": str(eggs - sold)}
            file.write(json.dumps(row) + "\n")
    path = folder / "run.toml"
    models = "".join(f'{name} = "{assets / name}"\n' for name in ("student", "teacher"))
    path.write_text(f'{models}data = "{folder / "prompts.jsonl"}"\n')
    return path


def reading(source: Path, run_file: Path) -> Measurement:
    environment = {**os.environ, "PYTHONPATH": str(source / "src"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", READING, str(run_file)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if ended.returncode:
        sys.exit(f"reading with {source} failed:\n{ended.stderr}")
    measured: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return measured


def whole_command(source: Path, run_file: Path, output: Path) -> float:
    """Seconds of a run of one step with one answer of a few tokens."""
    environment = {**os.environ, "PYTHONPATH": str(source / "src"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "tutelage", "train", str(run_file)]
    for override in (f"output={output}", "steps=1", *SMALL):
        command += ["--set", override]
    since = time.perf_counter()
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if ended.returncode:
        sys.exit(f"training with {source} failed:\n{ended.stderr}")
    return time.perf_counter() - since


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=100_000)
    parser.add_argument("--base", default="355fc6c", help="another commit; default: before batches")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    results: Results = {"base": [], "now": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run_file = write_run_file(folder, arguments.prompts)
        with checked_out(arguments.base) as base:
            for number in range(arguments.rounds):
                for contender, source in (("base", base), ("now", ROOT)):
                    measured = reading(source, run_file)
                    measured["command"] = whole_command(source, run_file, folder / f"{contender}-{number}")
                    results[contender].append(measured)
    table = Table("", "seconds to read", "of processor time", "peak MiB", "seconds of the whole command")
    table.title = f"{arguments.prompts} prompts"
    for contender, title in (("base", arguments.base), ("now", "now")):
        values = [middle(results[contender], key) for key in ("seconds", "cpu_seconds", "peak_mib", "command")]
        table.add_row(title, *(f"{value:.1f}" for value in values))
    console = wide_console()
    console.print(table)
    console.print(
        f"base / now: {ratio(results['base'], results['now'], 'seconds'):.2f} times the seconds, "
        f"{ratio(results['base'], results['now'], 'cpu_seconds'):.2f} times the processor's, "
        f"{ratio(results['base'], results['now'], 'command'):.2f} times those of the whole command"
    )
    digests = {measurement["digest"] for measurements in results.values() for measurement in measurements}
    console.print("tokens: the same" if len(digests) == 1 else "tokens: DIFFERENT")
    console.print(describe(machine()))
    if arguments.json:
        write_json(arguments.json, results)
    return int(len(digests) != 1)


if __name__ == "__main__":
    sys.exit(main())
