"""The parent's side of the worker in which answers are judged: starts it, asks it, and kills it when it takes too long.

The worker's side is `verifier_worker.py`. It is a program of its own rather than a `multiprocessing` child, which would
import the user's main module again. `verifiers.py` interprets the verdicts.
"""

from __future__ import annotations

import itertools
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
import weakref
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage.errors import ConfigurationError
from tutelage.tasks import verifier_worker

__all__ = ["Reply", "WorkerProcess", "check_function_name"]

INSIDE_WORKER = "TUTELAGE_INSIDE_VERIFIER_WORKER"
_MAX_REPLY_BYTES = 65_536
_START_SECONDS = 120.0  # importing a user's module may load a whole framework from a cold disk

_Process = subprocess.Popen[bytes]

USERS_TASK = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


@dataclass(frozen=True)
class Reply:
    """The outcome of one question to the worker.

    Fields:
      value: what the judge says; None where it says nothing.
      failure: why there is none, in words, or None.
      timed_out: the answer took longer than its bound.
    """

    value: bool | float | None
    failure: str | None = None
    timed_out: bool = False


def check_function_name(task: str, key: str) -> None:
    """Refuse what cannot be the name of a user's function.

    Raises:
        ConfigurationError: names the key of the run file.
    """
    if not USERS_TASK.fullmatch(task):
        raise ConfigurationError(
            f'{key} is {task!r}; expected "module:function". A function of your own is named like "my_rules:polite".'
        )


class WorkerProcess:
    """A process that judges one task; it starts when first needed, and again after it had to be killed.

    Threads may share it; they take turns. A forked child gets a process of its own.

    Attributes:
        file: of the module that the function was found in, once it was loaded; None = it has none.

    Args:
        task: "math" or "module:function".
        timeout_seconds: bound for one answer, not counting the start.
        memory_limit_gib: what the process may take on top of its imports; enforced on Linux.
        returns: what the function's value is read as: a "verdict", a "score", or a "truth" value.
        key: of the task in a run file, for messages.
    """

    def __init__(
        self,
        task: str,
        *,
        timeout_seconds: float,
        memory_limit_gib: float,
        returns: str = "verdict",
        key: str = "data.verifier",
    ) -> None:
        self.task = task
        self.returns, self.key = returns, key
        self.file: str | None = None
        self.timeout_seconds = timeout_seconds
        self.memory_limit_gib = memory_limit_gib
        self.process: _Process | None = None
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._owner = os.getpid()

    def start(self) -> None:
        """Have the process running and its judge loaded.

        Raises:
            ConfigurationError: the judge cannot be loaded, with the reason.
        """
        self._leave_parents_process()
        with self._lock:
            self._running()

    def close(self) -> None:
        """End the process, if there is one; a later question would start another."""
        self._leave_parents_process()
        with self._lock:
            self._end()

    def ask(self, *arguments: Any) -> Reply:
        """Judge one answer within the bounds, whatever it does to the process.

        Args:
            arguments: of the judge, as JSON has them.

        Raises:
            ConfigurationError: the process had to be started and its judge cannot be loaded.
        """
        self._leave_parents_process()
        with self._lock:
            # Two tries: a process that died by itself may have been ended from outside, or for an earlier answer.
            for _ in range(2):
                self._running()
                started = time.monotonic()
                reply = self._exchange({"arguments": arguments}, self.timeout_seconds)
                if reply is not None:
                    return Reply(reply["value"], reply["error"])
                self._end()
                if time.monotonic() - started >= self.timeout_seconds:
                    return Reply(None, f"it took longer than {self.timeout_seconds:g} seconds", timed_out=True)
            return Reply(None, "it ended its process")

    def _running(self) -> None:
        """Have a process with its judge loaded; a new one where there is none or it ended."""
        if self.process is not None and self.process.poll() is None:
            return
        self._end()
        is_users = self.task != "math"
        if is_users and INSIDE_WORKER in os.environ:
            raise ConfigurationError(
                f"{self.key} {self.task!r} is wanted within a verifier's worker; expected only"
                ' "math" or "exact" there. If its module is also the script that runs, put what the script does under'
                ' `if __name__ == "__main__":`.'
            )
        process = self.process = subprocess.Popen(
            [sys.executable, "-P", "-W", "ignore", str(Path(verifier_worker.__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            stderr=None if is_users else subprocess.DEVNULL,
            # sympy's results depend on the order of sets here and there: fix it, so that a verdict can be repeated
            env={**os.environ, INSIDE_WORKER: "1", "PYTHONHASHSEED": "0"},
            start_new_session=True,  # Ctrl-C does not reach it, and killing its group takes its children along
        )
        self._courier = _Courier(process)
        self._courier.start()
        self._finalizer = weakref.finalize(self, _end, process, self._courier, os.getpid())
        setup = {
            "task": self.task,
            "returns": self.returns,
            "paths": [str(Path.cwd()), *sys.path],
            "timeout_seconds": self.timeout_seconds,
            "memory_limit_bytes": int(self.memory_limit_gib * 2**30),
        }
        reply = self._exchange(setup, _START_SECONDS)
        if reply is None or reply["error"] is not None:
            self._end()
            reason = f"it ended or hung within {_START_SECONDS:g} seconds" if reply is None else reply["error"]
            raise ConfigurationError(
                f"{self.key} is {self.task!r}, which cannot be loaded ({reason}); expected it to import from"
                f" {Path.cwd()} or the installed packages. Check the names, and that the module imports by itself."
            )
        self.file = reply["file"]

    def _exchange(self, message: dict[str, Any], seconds: float) -> Any:
        """Send a message and return the reply to it; None if the process died or did not reply in time."""
        try:
            return self._courier.exchange({"number": next(self._numbers), **message}, seconds)
        except BaseException:  # Ctrl-C: the reply is no longer needed
            self._end()
            raise

    def _end(self) -> None:
        if self.process is not None:
            self._finalizer()
            self.process = None

    def _leave_parents_process(self) -> None:
        """After a fork: two parents must not write to one worker, and the lock's holder may not exist here."""
        if self._owner != os.getpid():
            self._lock = threading.Lock()
            self._end()
            self._owner = os.getpid()


class _Courier(threading.Thread):
    """Takes messages to a process and brings the replies; a thread of its own, since it may be stuck for ever.

    A pipe that another process holds open neither ends nor takes anything, whatever became of the worker, and pipes
    cannot be polled on every system. So the caller waits for this thread up to its limit, and then abandons it.
    """

    def __init__(self, process: _Process) -> None:
        super().__init__(daemon=True, name="verifier's courier")
        assert process.stdin is not None and process.stdout is not None
        self._stdin, self._stdout = process.stdin, process.stdout
        self._messages: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._replies: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def exchange(self, message: dict[str, Any], seconds: float) -> Any:
        """The reply to a message, or None if there is none or not in time. After that the courier is of no more use."""
        self._messages.put(message)
        try:
            return self._replies.get(timeout=seconds)
        except queue.Empty:
            return None

    def stop(self) -> None:
        self._messages.put(None)

    def run(self) -> None:
        with (
            self._stdin,
            self._stdout,
            suppress(OSError, ValueError, EOFError, RecursionError),
        ):  # it ended, or wrote what is no message
            received = b""
            while (message := self._messages.get()) is not None:
                to_send = memoryview(json.dumps(message).encode() + b"\n")  # ASCII, so that lone surrogates travel too
                while to_send:
                    to_send = to_send[self._stdin.write(to_send) :]
                reply: dict[str, Any] = {}
                while reply.get("number") != message["number"]:  # any other line is not a reply to this message
                    while b"\n" not in received:
                        received += self._read()
                    line, _, received = received.partition(b"\n")
                    reply = dict(json.loads(line))
                self._replies.put(reply)
        self._replies.put(None)

    def _read(self) -> bytes:
        read = self._stdout.read(_MAX_REPLY_BYTES)
        if not read:
            raise EOFError
        return bytes(read)


def _kill(process: _Process) -> None:
    if process.poll() is not None:  # its number may belong to another process by now
        return
    children = _children(process.pid)  # also those that left its session
    with suppress(OSError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    for child in children:
        with suppress(OSError):
            os.kill(child, signal.SIGKILL)


def _children(pid: int) -> list[int]:
    """Processes that a process started, and theirs, as far as the system says so."""
    children: list[int] = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            children += map(int, (task / "children").read_text().split())
    return children + [grandchild for child in children for grandchild in _children(child)]


def _end(process: _Process, courier: _Courier, owner: int) -> None:
    """Kill a process, wait for its end and have our ends of its pipes closed; a forked child only closes."""
    if os.getpid() == owner:
        _kill(process)
        process.wait()
        courier.stop()
        courier.join(timeout=1.0)
    else:
        process.returncode = 0  # not ours to wait for; without this, Popen warns of a process left running
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
