"""Where a command begins and ends: every way to fail becomes one line on stderr and an exit code.

    0    done
    1    `doctor` found something that cannot work or `verify` something that differs, or the output was closed
    2    what the user can correct: our own errors, files, memory, the command line itself
    70   a fault of ours; the line names a log file
    130  Ctrl-C or SIGTERM

With --json the line is JSON, see `cli.output`. With TUTELAGE_TRACEBACK=1 the traceback is printed above the line.
"""

from __future__ import annotations

import sys
import traceback
import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import typer
from rich.text import Text

from tutelage.cli.app import app
from tutelage.cli.faults import FAULT_CODE, describe_fault, is_out_of_memory, shows_traceback
from tutelage.cli.output import document_alone, is_json_asked, print_json_line
from tutelage.display.console import TextConsole, write_in_any_encoding
from tutelage.errors import RunInterrupted, TutelageError, in_short, printable

__all__ = ["main"]

USER_CODE, INTERRUPTED_CODE = 2, 130
MAX_LINE = 3000  # letters; what is wrong stands at the beginning, and what to do at the end
# What is wrong with the command line itself: click's exception, of which some versions of typer bring their own copy.
CommandLineError: Any = typer.BadParameter.__mro__[2]


@dataclass(frozen=True)
class Ending:
    """How a command ended: its exit code, the class of what ended it, and what is said."""

    code: int
    kind: str
    text: str = ""


def main() -> None:
    """Run the command line, and end the process with its exit code."""
    write_in_any_encoding()
    as_json = is_json_asked(sys.argv[1:])
    warnings.showwarning = lambda message, *_: _warn(str(message), as_json)
    try:
        with document_alone() if as_json else nullcontext():
            code = app(standalone_mode=False)
        if code == INTERRUPTED_CODE:  # what typer makes of Ctrl-C
            _say(Ending(INTERRUPTED_CODE, "KeyboardInterrupt", "stopped by Ctrl-C"), as_json)
    except Exception as problem:
        if shows_traceback():
            traceback.print_exception(problem)
        ending = _ending(problem)
        if not getattr(problem, "is_reported", False) and ending.text:  # by another process of the run
            _say(ending, as_json)
        code = ending.code
    sys.exit(code if isinstance(code, int) else 0)


def _ending(problem: Exception) -> Ending:
    kind = type(problem).__name__
    if isinstance(problem, CommandLineError):
        return Ending(USER_CODE, "CommandLineError", _wrong_command(problem))
    if isinstance(problem, RunInterrupted):
        return Ending(INTERRUPTED_CODE, kind, str(problem))
    if isinstance(problem, TutelageError | OSError):  # an OSError (disk full, permissions) names its file
        return Ending(USER_CODE, kind, str(problem))
    if is_out_of_memory(problem):
        return Ending(USER_CODE, kind, _without_memory(problem))
    is_reported = getattr(problem, "is_reported", False)
    return Ending(FAULT_CODE, kind, "" if is_reported else describe_fault(problem))


def _wrong_command(problem: Any) -> str:
    context, message = getattr(problem, "ctx", None), problem.format_message()
    if not message and context is not None:  # no argument at all
        sys.stdout.write(context.get_help())  # empty where typer prints it by itself
        return ""
    command = "tutelage" if context is None else context.command_path
    return f"{message.rstrip('.')}. {command} --help shows what there is."


def _without_memory(problem: Exception) -> str:
    return (
        f"out of memory ({in_short(problem)}). While sampling, lower rollout.max_rows, then rollout.max_new_tokens; in "
        "the update, runtime.micro_batch_tokens; while scoring, rollout.score_tokens. `tutelage doctor` estimates what "
        "a run needs."
    )


def _say(ending: Ending, as_json: bool) -> None:
    if as_json:
        print_json_line({"error": {"kind": ending.kind, "message": ending.text, "exit_code": ending.code}})
    elif ending.code == INTERRUPTED_CODE:
        _print_line(ending.text, "yellow")
    else:
        _print_line("error:", "red", ending.text)


def _warn(text: str, as_json: bool) -> None:
    if as_json:
        print_json_line({"warning": text})
    else:
        _print_line("warning:", "yellow", text)


def _print_line(head: str, style: str, text: str = "") -> None:
    """One line, whatever the text holds and however long it is."""
    shown = printable(text).replace("\n", "\\n")
    if len(shown) > MAX_LINE:
        shown = f"{shown[: MAX_LINE // 2]} ... {shown[-MAX_LINE // 2 :]}"
    TextConsole(stderr=True).say(Text.assemble((head, style), f" {shown}" if shown else ""))
