"""How are contenders measured fairly on a machine that is not quiet?

They run in turns, one round after the other (A B C, A B C, ...), and are compared within a round: a busy moment meets
neighbours alike, and the median over rounds leaves out the odd one. Where other work keeps the machine busy throughout,
the processor's clock (`--clock cpu`) counts only what a contender itself computes; with one thread and a quiet machine
both clocks agree. Also here: one thread for everybody, contenders in another interpreter or of another commit, files of
results.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn

ROOT = Path(__file__).parents[1]
# What "seconds" means in a run of a script: those on the wall, or those the processor spent on this process.
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}

Measurement = dict[str, Any]
Results = dict[str, list[Measurement]]


def run_on_threads(number: int) -> None:
    """Restart this script with `number` threads; set later, a thread that a library starts would not see it."""
    wanted = {"OMP_NUM_THREADS": str(number), "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        os.environ.update(wanted)
        os.execv(sys.executable, [sys.executable, *sys.argv])
    torch.set_num_threads(number)


def take_turns(
    contenders: Mapping[str, Callable[[int], Measurement]], rounds: int, *, title: str, clock: str, warmups: int = 1
) -> Results:
    """Let every contender run once per round; warm-up rounds are thrown away.

    Args:
      contenders: called with a seed that all of them get in this round. A measurement has the "tokens" that were made;
        "seconds" are taken here unless the contender, in another process, brings its own.
      clock: a name in CLOCKS.
    """
    now = CLOCKS[clock]
    results: Results = {name: [] for name in contenders}
    columns = (TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task(title)
        for number in range(-warmups, rounds):
            for name, run in contenders.items():
                progress.update(
                    bar, description=f"{title}: {f'round {number + 1}' if number >= 0 else 'warm-up'}, {name}"
                )
                started = now()
                measurement = run(number % 2**31)
                measurement.setdefault("seconds", now() - started)
                measurement["tokens_per_second"] = measurement["tokens"] / measurement["seconds"]
                if number >= 0:
                    results[name].append(measurement)
    return results


def middle(measurements: Sequence[Measurement], quantity: str) -> float:
    """The median of one quantity over the rounds."""
    return statistics.median(float(measurement[quantity]) for measurement in measurements)


def ratio(numerators: Sequence[Measurement], denominators: Sequence[Measurement], quantity: str) -> float:
    """The median over rounds of one contender's quantity over another's in the same round."""
    pairs = zip(numerators, denominators, strict=True)
    return statistics.median(float(above[quantity]) / float(below[quantity]) for above, below in pairs)


def machine(device: str = "cpu") -> dict[str, Any]:
    """What this runs on, and how busy it is."""
    cpu = platform.processor() or platform.machine()
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.exists():
        names = [line.split(":", 1)[1].strip() for line in cpu_info.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    return {
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def describe(facts: Mapping[str, Any]) -> str:
    """The machine in one line."""
    load = "" if facts["load"] is None else f", load {facts['load'][0]:.1f}"
    versions = f"torch {facts['torch']}, transformers {facts['transformers']}"
    return f"{facts['device']}, {facts['cores']} cores, {facts['threads']} thread(s) used{load}; {versions}"


def wide_console() -> Console:
    """A console whose tables are not cut where there is no terminal to fit."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=150)


def write_json(path: Path | None, content: Mapping[str, Any]) -> None:
    """Keep everything that was measured, if a file was asked for."""
    if path is not None:
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """The source of another commit in a folder of its own, for as long as it is measured beside this one."""
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary) / "base"
        subprocess.run(["git", "-C", ROOT, "worktree", "add", "--quiet", "--detach", place, commit], check=True)
        try:
            yield place
        finally:
            subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", place], check=True)


class Worker:
    """A contender in another interpreter: lines of JSON in, lines of JSON out. It sleeps while others are measured.

    Args:
      command: what to start.
      job: the first line it is sent; its answer is `hello`.
    """

    def __init__(self, command: Sequence[str], job: Mapping[str, Any]) -> None:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        # Whatever it complains about is kept for the message; unread, a full pipe would stop it.
        self._complaints: list[str] = []
        self._reader = threading.Thread(target=self._read_complaints, daemon=True)
        self._reader.start()
        self.hello = self.ask(job)

    def ask(self, request: Mapping[str, Any]) -> Measurement:
        """Send one request and wait for its answer."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._reader.join(timeout=5)
            raise RuntimeError(f"the benchmark's worker ended without an answer:\n{''.join(self._complaints[-30:])}")
        answer: Measurement = json.loads(line)
        return answer

    def close(self) -> None:
        """Let it end by closing its input."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def _read_complaints(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._complaints.append(line)
            del self._complaints[:-200]
