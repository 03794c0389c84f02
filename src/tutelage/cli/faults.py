"""Unexpected errors: a fault of Tutelage becomes one line and a file with all that is needed to find it.

An error that a user can correct is a `TutelageError`, and is not handled here. A lack of memory is in between: the user
can do something about it, but PyTorch or Python raises it.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import sys
import time
import traceback
from importlib.metadata import PackageNotFoundError, version
from tempfile import mkstemp

from tutelage import __version__

__all__ = ["FAULT_CODE", "describe_fault", "is_out_of_memory", "shows_traceback"]

FAULT_CODE = 70  # EX_SOFTWARE of sysexits.h; what a user can correct has 2
PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "peft", "datasets", "pydantic", "typer", "rich")


def shows_traceback() -> bool:
    """Whether tracebacks of all errors are asked for, as by a developer of Tutelage."""
    return os.environ.get("TUTELAGE_TRACEBACK", "") not in ("", "0")


def is_out_of_memory(problem: BaseException) -> bool:
    """A device or the machine has no memory left; for the second, PyTorch has a message and no class of its own."""
    words = str(problem)
    if isinstance(problem, RuntimeError) and ("can't allocate memory" in words or "not enough memory" in words):
        return True
    return isinstance(problem, MemoryError) or type(problem).__name__ == "OutOfMemoryError"


def describe_fault(problem: BaseException) -> str:
    """Write the traceback to a file in the folder for temporary ones, and say so in a line."""
    kind = type(problem).__name__
    try:
        # A new file that only its owner can read: the command line may hold private things.
        stamp = time.strftime("%Y%m%d-%H%M%S")
        number, path = mkstemp(prefix=f"tutelage-fault-{stamp}-", suffix=".log")
        with os.fdopen(number, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(_report(problem))
    except OSError as failure:
        return (
            f"{kind}, which is a fault of Tutelage and not yours; no log of it could be written ({failure}). Run the "
            "command again with TUTELAGE_TRACEBACK=1, and report what it prints."
        )
    return (
        f"{kind}, which is a fault of Tutelage and not yours; {path} says where. Please report it with that file, "
        "once you have read it: it holds the command line and the paths."
    )


def _report(problem: BaseException) -> str:
    packages = "\n".join(f"{name} {_version(name)}" for name in PACKAGES)
    # A password in a server's address does not belong in a log.
    command = re.sub(r"//[^/@\s]*@", "//...@", shlex.join(sys.argv))
    return "\n".join(
        [
            f"tutelage {__version__}, Python {platform.python_version()}, {platform.platform()}",
            packages,
            f"command: {command}",
            "",
            "".join(traceback.format_exception(problem)),
        ]
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "is not installed"
