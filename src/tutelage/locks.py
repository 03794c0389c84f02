"""One process writes into a folder at a time: a lock on the folder that ends with the process, however it ends.

The lock is one of POSIX (`fcntl.lockf`): it belongs to the process that took it, so a worker that was forked off and
outlives it holds nothing, and a kill leaves nothing that blocks. It works on NFS where the server does locks; where it
does not, there is a warning and no lock.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
import warnings
from contextlib import suppress
from pathlib import Path

from tutelage.errors import OutputExistsError

if sys.platform != "win32":
    import fcntl

__all__ = ["LOCK_FILE", "hold", "holder_of", "release"]

LOCK_FILE = ".lock"
BLOCKED = (errno.EACCES, errno.EAGAIN)

# Closing any descriptor of a file gives up its POSIX lock, so each file is opened once, and known by device and inode
# (and the process: one that is forked off inherits this table and not the locks).
_held: dict[tuple[int, int, int], int] = {}


def hold(folder: Path, advice: str) -> None:
    """Own `folder` until `release`, or until this process ends. It must exist.

    Args:
      advice: what to do if another process has it, the message's last sentence.
    Raises:
      OutputExistsError: another process has it; says which.
    """
    if sys.platform == "win32":  # no such locks: it is for the user not to start two commands
        return
    path = folder / LOCK_FILE
    if path.exists() and _key(path.stat()) in _held:
        return
    number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.lockf(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as problem:
        os.close(number)
        if problem.errno in BLOCKED:
            raise OutputExistsError(
                f"{folder} is in use{holder_of(path)}; two commands would write into each other's files. {advice}"
            ) from None
        warnings.warn(
            f"the file system of {folder} has no locks ({problem.strerror}), so a second command on that folder would "
            "not be noticed. Start none while this one works.",
            stacklevel=2,
        )
        return
    _held[_key(os.fstat(number))] = number
    sign(number)


def release(folder: Path) -> None:
    """Give up what `hold` took, if it did."""
    path = folder / LOCK_FILE
    number = _held.pop(_key(path.stat()), None) if path.exists() else None
    if number is not None:
        with suppress(OSError):
            os.ftruncate(number, 0)
        os.close(number)


def sign(number: int) -> None:
    """Write into an open lock file which process has it; a full disk is no reason to stop here."""
    with suppress(OSError):
        os.ftruncate(number, 0)
        os.pwrite(number, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)


def holder_of(path: Path) -> str:
    """ " by process 17 on HOST", as far as a lock file tells."""
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""
    return f" by {text}" if text else ""


def _key(stat: os.stat_result) -> tuple[int, int, int]:
    return os.getpid(), stat.st_dev, stat.st_ino
