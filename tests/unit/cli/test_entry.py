"""How a command ends: one line, and an exit code that says whose turn it is."""

from __future__ import annotations

import errno
import re
import sys
import tempfile
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tutelage.cli import entry
from tutelage.errors import ConfigurationError, RunInterrupted, WorkerLostError


class Ending:
    """Runs `main` with a command that ends as told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capfd = monkeypatch, capfd
        self.monkeypatch.delenv("TUTELAGE_TRACEBACK", raising=False)
        self.monkeypatch.delenv("FORCE_COLOR", raising=False)

    def __call__(self, end: BaseException | int | None) -> tuple[Any, str]:
        def command(**_: object) -> int | None:
            if isinstance(end, BaseException):
                raise end
            return end

        self.monkeypatch.setattr(entry, "app", command)
        with warnings.catch_warnings(), pytest.raises(SystemExit) as leaving:
            entry.main()
        out, err = self.capfd.readouterr()
        assert out == "" and err.count("\n") == (1 if err else 0)
        return leaving.value.code, err

    def words(self, *words: str) -> tuple[Any, str]:
        """The real command line, in the same way."""
        self.monkeypatch.setattr(sys, "argv", ["tutelage", *words])
        with warnings.catch_warnings(), pytest.raises(SystemExit) as leaving:
            entry.main()
        out, err = self.capfd.readouterr()
        assert out == ""
        return leaving.value.code, err


@pytest.fixture
def ending(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Ending:
    return Ending(monkeypatch, capfd)


@pytest.fixture
def logs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr("tutelage.cli.faults.mkstemp", partial(tempfile.mkstemp, dir=tmp_path))
    return tmp_path


def test_a_good_end_and_the_doctors_verdict_say_nothing(ending: Ending) -> None:
    assert ending(None) == (0, "") and ending(0) == (0, "") and ending(1) == (1, "")


@pytest.mark.parametrize(
    ("problem", "line"),
    [
        (ConfigurationError("steps is 0."), "error: steps is 0."),
        (ConfigurationError("two\nlines [red]x[/b]"), r"error: two\nlines [red]x[/b]"),
        (ConfigurationError("\x1b[31m \u202e \udcff"), r"error: \x1b[31m \u202e \udcff"),
        (OSError(errno.ENOSPC, "No space left on device", "m.jsonl"), "No space left on device: 'm.jsonl'"),
        (WorkerLostError("rank 1 is gone"), "error: rank 1 is gone"),
        (MemoryError(), "error: out of memory (MemoryError). While sampling, lower rollout.max_rows"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), "error: out of memory (CUDA out of memory. Tried)."),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: 9 bytes"),
            "error: out of memory ([enforce fail",
        ),
    ],
)
def test_what_a_user_can_correct_is_one_line(ending: Ending, logs: Path, problem: Exception, line: str) -> None:
    code, said = ending(problem)
    assert code == 2 and line in said and said.startswith("error: ")
    assert list(logs.iterdir()) == []


def test_an_endless_message_is_cut_in_the_middle(ending: Ending) -> None:
    code, said = ending(ConfigurationError(f"name is {'x' * 100_000}. Shorten it."))
    assert code == 2 and len(said) < 3100
    assert said.startswith("error: name is xx") and said.endswith("Shorten it.\n")


def test_ctrl_c_and_an_interrupted_run(ending: Ending) -> None:
    assert ending(130) == (130, "stopped by Ctrl-C\n")
    assert ending(RunInterrupted("stopped by Ctrl-C after 3 steps")) == (130, "stopped by Ctrl-C after 3 steps\n")


def test_an_unexpected_error_is_a_fault_of_ours_with_a_log(
    ending: Ending, logs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["tutelage", "train", "a b.toml", "--set", "teacher.server=http://me:secret@host"])
    code, said = ending(KeyError("surprise"))
    (log,) = logs.iterdir()
    assert code == 70 and said.startswith("error: KeyError, which is a fault of Tutelage and not yours")
    assert str(log) in said and "report" in said
    assert re.fullmatch(r"tutelage-fault-\d{8}-\d{6}-\w+\.log", log.name) and log.stat().st_mode & 0o077 == 0
    text = log.read_text()
    for fact in ("Traceback", "KeyError: 'surprise'", "test_entry.py", "torch ", "Python 3", "train 'a b.toml'"):
        assert fact in text
    assert "secret" not in text


def test_every_fault_has_a_log_of_its_own(ending: Ending, logs: Path) -> None:
    ending(RecursionError("deep"))
    ending(AssertionError())
    assert len(list(logs.iterdir())) == 2


def test_a_fault_without_a_place_for_its_log_is_still_one_line(
    ending: Ending, logs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tutelage.cli.faults.mkstemp", partial(tempfile.mkstemp, dir=logs / "gone"))
    code, said = ending(KeyError("surprise"))
    assert code == 70 and "no log of it could be written" in said and "TUTELAGE_TRACEBACK=1" in said


def test_what_another_process_has_said_is_not_said_again(ending: Ending, logs: Path) -> None:
    for problem, expected in ((ConfigurationError("x"), 2), (KeyError("x"), 70), (RunInterrupted("x"), 130)):
        problem.is_reported = True  # type: ignore[attr-defined]
        assert ending(problem) == (expected, "")
    assert list(logs.iterdir()) == []


def test_leaving_and_interruptions_go_through(ending: Ending) -> None:
    assert ending(SystemExit(3)) == (3, "")
    with pytest.raises(KeyboardInterrupt):
        ending(KeyboardInterrupt())


def test_tracebacks_for_those_who_want_them(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], logs: Path
) -> None:
    def command(**_: object) -> None:
        raise ConfigurationError("steps is 0.")

    monkeypatch.setattr(entry, "app", command)
    monkeypatch.setenv("TUTELAGE_TRACEBACK", "1")
    with warnings.catch_warnings(), pytest.raises(SystemExit) as leaving:
        entry.main()
    err = capfd.readouterr().err
    assert leaving.value.code == 2 and err.startswith("Traceback") and err.endswith("error: steps is 0.\n")


def test_a_warning_is_one_line(ending: Ending, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    def command(**_: object) -> None:
        warnings.warn("[red]two\nlines\x1b[2J", UserWarning, stacklevel=1)

    monkeypatch.setattr(entry, "app", command)
    with warnings.catch_warnings(), pytest.raises(SystemExit):
        warnings.simplefilter("always")
        entry.main()
    assert capfd.readouterr().err == "warning: [red]two\\nlines\\x1b[2J\n"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["train"], "error: Missing argument"),
        (["train", "a.toml", "b.toml"], "error: Got unexpected extra argument"),
        (["train", "a.toml", "--nope"], "error: No such option: --nope"),
        (["nope"], "error: No such command 'nope'"),
        (["evaluate", "m", "--task", "t", "--samples", "0"], "error: Invalid value for '--samples'"),
        (["evaluate", "m", "--task", "t", "--samples", "1000000000000"], "error: Invalid value for '--samples'"),
        (["evaluate", "m", "--task", "t", "--seed", "9223372036854775808"], "error: Invalid value for '--seed'"),
        (["evaluate", "m", "--task", "t", "--temperature", "inf"], "--temperature"),
        (["evaluate", "m", "--task", "t", "--temperature", "nan"], "--temperature"),
        (["evaluate", "~nobody-of-that-name/m", "--task", "t"], "error: MODEL is '~nobody-of-that-name/m'"),
        (["evaluate", "m", "--task", "a\nb"], "error: --task is 'a\\nb'"),
        (["train", ""], "error: "),
        (["probe", "budget", "r.toml", "--radii", "0,nan"], "error: --radii is '0,nan'; expected finite numbers"),
        (["report", "x\x1b[31m"], "error: RUNS is 'x\\x1b[31m'"),
    ],
)
def test_a_wrong_command_line_is_one_line(ending: Ending, words: list[str], line: str) -> None:
    code, said = ending.words(*words)
    assert code == 2 and said.count("\n") == 1 and said.startswith("error: ") and line in said
