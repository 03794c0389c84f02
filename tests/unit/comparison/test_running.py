"""Many runs as processes: failures, interruptions, and what is not done twice. The runs here are tiny scripts."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console

from tutelage.comparison import running
from tutelage.comparison.running import Job, is_finished, locked, run_jobs
from tutelage.errors import OutputExistsError, RunInterrupted

pytestmark = pytest.mark.processes

CONFIG = 'student = "s"\nteacher = "t"\ndata = "d"\nsteps = 2\n[evaluation]\nsets = ["p.jsonl"]\n'
WHOLE = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[1])
(folder / "checkpoints").mkdir(parents=True)
(folder / "config.toml").write_text(pathlib.Path(sys.argv[2]).read_text())
for name, row in {"metrics": {"step": 1, "loss": 0.5}, "evaluations": {"step": 2, "name": "p", "pass_at_1": 1}}.items():
    (folder / f"{name}.jsonl").write_text(json.dumps(row) + "\\n")
(folder / "checkpoints" / "index.json").write_text('{"last": "step-000002"}')
"""
FAILS = "import sys; sys.exit('no such model')"
WAITS = """
import pathlib, signal, sys, time
def stop(*_):
    pathlib.Path(sys.argv[1] + ".saved").touch()
    sys.exit(130)
signal.signal(signal.SIGTERM, stop)
pathlib.Path(sys.argv[1] + ".started").touch()
time.sleep(60)
"""


@dataclass(frozen=True)
class Script(Job):
    """A run that is a script of its own."""

    code: str = WHOLE

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-S", "-c", self.code, str(self.folder), str(self.run_file)]


def script(folder: Path, name: str, code: str = WHOLE) -> Script:
    run_file = folder / "run.toml"
    run_file.write_text(CONFIG)
    return Script(name, run_file, folder / name, folder / f"{name}.log", 2, code=code)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "SECONDS_BETWEEN_LOOKS", 0.02)


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=200)


def text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_failure_does_not_stop_the_others(tmp_path: Path, console: Console) -> None:
    jobs = [script(tmp_path, "a", FAILS), script(tmp_path, "b"), script(tmp_path, "c")]
    assert run_jobs(jobs, console, workers=1) == {"a": 1}
    assert [is_finished(job.folder, job.num_steps) for job in jobs] == [False, True, True]
    assert jobs[0].log.read_text() == "no such model\n"
    assert "a  failed, exit code 1" in text(console) and "c  finished  loss 0.50  pass@1 100.0%" in text(console)


@pytest.mark.parametrize(("width", "height"), [(40, 40), (80, 40), (160, 40), (80, 6)])
def test_the_display_fits_into_the_terminal(
    tmp_path: Path, width: int, height: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    jobs = [script(tmp_path, name) for name in ("first", "second")]
    for job in jobs:
        subprocess.run(job.command, check=True)
    terminal = Console(file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None)
    display = running._Display(jobs, jobs, terminal)
    for job in jobs:
        display.started(job)
        display.looked_at(job)
    terminal.print(display)
    rows = [row.rstrip() for row in text(terminal).splitlines()]
    assert max(map(len, rows)) <= width and rows[0].startswith("first") and "1/2" in rows[0]
    assert ("pass@1 100.0%" in rows[0]) == (width >= 72)
    curves = [row.split()[:3] for row in rows[2:]]
    assert curves.count(["loss", "0.500", "▁"]) == (2 if height > 6 else 0)
    display.ended(jobs[0], 0)
    assert list(display.views) == ["second"]


def test_finished_runs_are_not_repeated(tmp_path: Path, console: Console) -> None:
    jobs = [script(tmp_path, "a"), script(tmp_path, "b")]
    run_jobs(jobs[:1], console, workers=2)
    again = [script(tmp_path, "a", FAILS), jobs[1]]
    assert run_jobs(again, console, workers=2) == {}
    assert all(is_finished(job.folder, job.num_steps) for job in jobs)


@pytest.mark.parametrize("spoilt", ["config.toml", "checkpoints/index.json", "evaluations.jsonl"])
def test_a_half_finished_run_is_resumed(tmp_path: Path, console: Console, spoilt: str) -> None:
    job = script(tmp_path, "a")
    assert "--resume" not in Job.command.fget(job)  # type: ignore[attr-defined]
    run_jobs([job], console, workers=1)
    assert is_finished(job.folder, job.num_steps)
    (job.folder / spoilt).unlink()
    assert not is_finished(job.folder, job.num_steps)
    words = Job.command.fget(job)  # type: ignore[attr-defined]
    here = f'output="{job.folder}"'  # whatever the run file says: the comparison's folder may have been moved
    assert words[-5:] == ["train", str(job.run_file), "--set", here, "--resume"]


def test_the_last_checkpoint_alone_is_not_the_end(tmp_path: Path, console: Console) -> None:
    job = script(tmp_path, "a")
    run_jobs([job], console, workers=1)
    (job.folder / "config.toml").write_text(CONFIG + "greedy = true\n")
    assert not is_finished(job.folder, job.num_steps), "the greedy answers are missing"
    (job.folder / "config.toml").write_text(CONFIG)
    (job.folder / "checkpoints" / "index.json").write_text(json.dumps({"last": "step-000001"}))
    assert not is_finished(job.folder, job.num_steps)


def test_an_interruption_reaches_every_run(tmp_path: Path, console: Console) -> None:
    jobs = [script(tmp_path, name, WAITS) for name in ("a", "b", "c")]

    def interrupt() -> None:
        while not all((tmp_path / f"{name}.started").exists() for name in ("a", "b")):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(RunInterrupted, match="SIGTERM"):
        run_jobs(jobs, console, workers=2)
    thread.join()
    assert [(tmp_path / f"{name}.saved").exists() for name in ("a", "b", "c")] == [True, True, False]


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such locks")
def test_a_folder_belongs_to_one_command_and_its_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "SECONDS_TO_SAVE", 0)
    with locked(tmp_path):
        # As a run does that outlives a killed command: it has the lock until it ends.
        words = [sys.executable, "-S", "-c", "import sys; sys.stdin.read()"]
        left_behind = subprocess.Popen(words, stdin=subprocess.PIPE, close_fds=False)
    with pytest.raises(OutputExistsError, match="by runs that another command left running"), locked(tmp_path):
        pass
    left_behind.communicate()
    with locked(tmp_path):
        words = [sys.executable, "-c", ANOTHER, str(tmp_path)]
        refused = subprocess.run(words, capture_output=True, text=True)
    assert f"{tmp_path} is in use by process {os.getpid()} on " in refused.stderr


ANOTHER = """import sys
from pathlib import Path
from tutelage.comparison.running import locked
with locked(Path(sys.argv[1])):
    pass"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux does this")
def test_runs_end_with_the_process_that_started_them() -> None:
    child = running.CHILD.split("from tutelage")[0] + "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()  # the child has said who it is
    process.kill()
    process.communicate(timeout=30)  # the pipe ends when the child does, long before its minute is over
