"""Commands and actions in processes of their own, and traps for them."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from tutelage import cli

# As short as a run can be that evaluates, saves and drops checkpoints on the way.
SHORT = ["steps=3", "checkpoint.every=1", "checkpoint.keep_last=1", "evaluation.every=1", "evaluation.num_samples=1"]

Patch = Callable[[pytest.MonkeyPatch], None]

# Words of the command line -> exit code, stdout, stderr.
Command = Callable[..., tuple[int, str, str]]


def exit_code(action: Callable[[], object], patch: Patch) -> int:
    """How `action` ends in a process of its own in which `patch` sets the trap; negative = the signal that ended it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12, about threads, of which the child has one
        child = os.fork()
    if child == 0:
        code = 99
        try:
            patch(pytest.MonkeyPatch())
            action()
            code = 0
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def command(path: Path, said: Path, *arguments: str) -> None:
    """`tutelage train`, with what it says on stderr in a file."""
    sys.argv = ["tutelage", "train", str(path), *(word for item in SHORT for word in ("--set", item)), *arguments]
    with said.open("w") as sys.stderr:
        cli.main()
