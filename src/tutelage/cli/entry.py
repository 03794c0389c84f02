"""Where a command begins and ends: every way to fail becomes one line on stderr and an exit code.

    0    done
    1    `doctor` found something that cannot work or `verify` something that differs, or the output was closed
    2    what the user can correct: our own errors, files, memory, the command line itself
    70   a fault of ours; the line names a log file
    130  Ctrl-C or SIGTERM

With TUTELAGE_TRACEBACK=1 the traceback is printed above the line.
"""

from __future__ import annotations

import sys
import traceback
import warnings
from typing import Any

import typer
from rich.text import Text

from tutelage.cli.app import app
from tutelage.cli.faults import FAULT_CODE, describe_fault, is_out_of_memory, shows_traceback
from tutelage.display.console import TextConsole, write_in_any_encoding
from tutelage.errors import RunInterrupted, TutelageError, in_short, printable

__all__ = ["main"]

USER_CODE, INTERRUPTED_CODE = 2, 130
MAX_LINE = 3000  # letters; what is wrong stands at the beginning, and what to do at the end
# What is wrong with the command line itself: click's exception, of which some versions of typer bring their own copy.
CommandLineError: Any = typer.BadParameter.__mro__[2]


def main() -> None:
    """Run the command line, and end the process with its exit code."""
    write_in_any_encoding()
    errors = TextConsole(stderr=True)
    warnings.showwarning = lambda message, *_: _say(errors, "warning:", "yellow", str(message))
    try:
        code = app(standalone_mode=False)
        if code == INTERRUPTED_CODE:  # what typer makes of Ctrl-C
            _say(errors, "stopped by Ctrl-C", "yellow")
    except Exception as problem:
        if shows_traceback():
            traceback.print_exception(problem)
        code = _ended(problem, errors)
    sys.exit(code if isinstance(code, int) else 0)


def _ended(problem: Exception, errors: TextConsole) -> int:
    """Print what ended the command, unless another process of the run has already reported it; the exit code."""
    is_reported = getattr(problem, "is_reported", False)
    if isinstance(problem, CommandLineError):
        return _wrong_command(problem, errors)
    if isinstance(problem, RunInterrupted):
        if not is_reported:
            _say(errors, str(problem), "yellow")
        return INTERRUPTED_CODE
    if isinstance(problem, TutelageError | OSError):  # an OSError (disk full, permissions) names its file
        text, code = str(problem), USER_CODE
    elif is_out_of_memory(problem):
        text, code = _without_memory(problem), USER_CODE
    else:
        text, code = "" if is_reported else describe_fault(problem), FAULT_CODE
    if not is_reported:
        _say(errors, "error:", "red", text)
    return code


def _wrong_command(problem: Any, errors: TextConsole) -> int:
    context, message = getattr(problem, "ctx", None), problem.format_message()
    if not message and context is not None:  # no argument at all
        sys.stdout.write(context.get_help())  # empty where typer prints it by itself
        return USER_CODE
    command = "tutelage" if context is None else context.command_path
    _say(errors, "error:", "red", f"{message.rstrip('.')}. {command} --help shows what there is.")
    return USER_CODE


def _without_memory(problem: Exception) -> str:
    return (
        f"out of memory ({in_short(problem)}). While sampling, lower rollout.max_rows, then rollout.max_new_tokens; in "
        "the update, runtime.micro_batch_tokens; while scoring, rollout.score_tokens. `tutelage doctor` estimates what "
        "a run needs."
    )


def _say(errors: TextConsole, head: str, style: str, text: str = "") -> None:
    """One line, whatever the text holds and however long it is."""
    shown = printable(text).replace("\n", "\\n")
    if len(shown) > MAX_LINE:
        shown = f"{shown[: MAX_LINE // 2]} ... {shown[-MAX_LINE // 2 :]}"
    errors.say(Text.assemble((head, style), f" {shown}" if shown else ""))
