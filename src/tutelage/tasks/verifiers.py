r"""Decides whether a response gives the right answer: total on any text, and bounded in time and memory.

    "math"             the final answer (last \boxed{...}, or else last number) equals the reference, mathematically
    "exact"            the last \boxed{...}, or else the last line, is the reference letter for letter
    "module:function"  a function of the user, (response, answer) -> bool or a score, correct from 0.5 up
    a callable         the same, called right here: no bound on its time

Numbers and equal texts are compared at once (`answers.py`); algebra and a user's named function run in a worker process
(`verifier_worker.py`) that is killed when it takes too long and started again when it is next needed. What kills,
crashes or hangs the worker is a wrong answer. Rewards other than right and wrong are not here.
"""

from __future__ import annotations

import difflib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tutelage.errors import ConfigurationError
from tutelage.tasks import verifier_worker
from tutelage.tasks.answers import clean, compare_plainly, exact_match, final_answer, reference_answer

__all__ = ["Task", "Verifier", "VerifierWarning", "check_verifier", "verify"]

UserFunction = Callable[[str, str], bool | float]
Task = str | UserFunction

_OWN_TASKS = ("math", "exact")
_USERS_TASK = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
_INSIDE_WORKER = "TUTELAGE_INSIDE_VERIFIER_WORKER"
_START_SECONDS = 120.0  # importing a user's module may load a whole framework from a cold disk

_Worker = subprocess.Popen[bytes]


class VerifierWarning(UserWarning):
    """A user's verifier failed on a response, which was counted as wrong."""


def verify(task: Task, response: str, answer: str) -> bool:
    """Whether a response gives the right answer.

    Never raises on any text, and decides within about five seconds (a callable takes its own time). The worker process
    that some tasks need is kept for the next call and ends with the program; use a `Verifier` for other bounds.

    Args:
        task: "math", "exact", "module:function" or a callable; see the top of this file.
        response: all that the model wrote.
        answer: the right answer, or a solution that ends in \\boxed{...} or "#### ...".
    Raises:
        ConfigurationError: the task itself cannot be used.
    """
    if not isinstance(task, str):
        return Verifier(task).verify(response, answer)
    if task not in _kept_verifiers:
        _kept_verifiers[task] = Verifier(task)
    return _kept_verifiers[task].verify(response, answer)


_kept_verifiers: dict[str, Verifier] = {}


def check_verifier(task: Task) -> None:
    """Refuse a task that cannot work, before any compute is spent; a user's named function is imported in a worker.

    Raises:
        ConfigurationError: an unknown name, a function that cannot be imported, or math-verify not installed.
    """
    with Verifier(task) as verifier:
        verifier.check()


class Verifier:
    """One task with its worker process, which starts when first needed; use it in a `with`, or call `close`.

    Threads may share it; they take turns. A forked child gets a worker of its own.

    Args:
        task: "math", "exact", "module:function" or a callable; see the top of this file.
        timeout_seconds: bound for one answer in the worker, not counting the worker's start; none for a callable.
        memory_limit_gib: what the worker may take on top of its imports; enforced on Linux.
    Attributes:
        num_timeouts: answers counted as wrong because they took too long. More than a few of a thousand: is the machine
            overloaded?
    Raises:
        ConfigurationError: an unknown task, or a bound that is not positive.
    """

    def __init__(self, task: Task = "math", *, timeout_seconds: float = 5.0, memory_limit_gib: float = 4.0) -> None:
        _check_name(task)
        for name, bound in (("timeout_seconds", timeout_seconds), ("memory_limit_gib", memory_limit_gib)):
            if not bound > 0:
                raise ConfigurationError(
                    f"{name} of a verifier is {bound}; expected more than 0. Use 5 seconds and 4 GiB if in doubt."
                )
        self.task = task
        self.timeout_seconds = timeout_seconds
        self.memory_limit_gib = memory_limit_gib
        self.num_timeouts = 0
        self._has_warned = False
        self._worker: _Worker | None = None
        self._lock = threading.Lock()
        self._owner = os.getpid()

    def __enter__(self) -> Verifier:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the worker, if there is one; a later call would start another."""
        self._leave_parents_worker()
        with self._lock:
            self._end_worker()

    def check(self) -> None:
        """Refuse a task whose judge cannot be loaded.

        Raises:
            ConfigurationError: with the reason.
        """
        if self.task == "math" and importlib.util.find_spec("math_verify") is None:
            raise ConfigurationError(
                'data.verifier is "math", but math-verify is not installed; expected it to be.'
                " Run: pip install math-verify"
            )
        if isinstance(self.task, str) and ":" in self.task:
            self._leave_parents_worker()
            with self._lock:
                self._ready_worker()

    def verify_many(self, pairs: Iterable[tuple[str, str]]) -> list[bool]:
        """Verdicts on (response, answer) pairs, in their order."""
        return [self.verify(response, answer) for response, answer in pairs]

    def verify(self, response: str, answer: str) -> bool:
        """Whether the response gives the right answer; see the function `verify`."""
        if self.task == "exact":
            return exact_match(response, answer)
        if self.task == "math":
            return self._verify_math(response, answer)
        if isinstance(self.task, str):
            return self._ask_worker(response, answer)
        return self._call(self.task, response, answer)

    def _verify_math(self, response: str, answer: str) -> bool:
        candidate, reference = final_answer(response), reference_answer(answer)
        if candidate is None:
            return False
        verdict = compare_plainly(candidate, reference)
        return self._ask_worker(clean(candidate), clean(reference)) if verdict is None else verdict

    def _call(self, function: UserFunction, response: str, answer: str) -> bool:
        try:
            return verifier_worker.is_correct(function(response, answer))
        except Exception as error:
            self._warn(f"raised {type(error).__name__}: {error}")
            return False

    def _warn(self, what: str) -> None:
        if self._has_warned:
            return
        self._has_warned = True
        warnings.warn(
            f"the verifier {_name(self.task)} {what}; expected a verdict on any response. The response counts as wrong,"
            " and so does, without another warning, every later one of this kind. Make the function handle it.",
            VerifierWarning,
            stacklevel=4,
        )

    # The worker ---------------------------------------------------------------------------------------------------

    def _ask_worker(self, response: str, answer: str) -> bool:
        self._leave_parents_worker()
        with self._lock:
            # Two tries: a worker that died before its time may have been ended from outside, or for an earlier answer.
            for _ in range(2):
                worker = self._ready_worker()
                started = time.monotonic()
                reply = self._exchange(worker, [response, answer], self.timeout_seconds)
                if reply is not None:
                    break
                self._end_worker()
                if time.monotonic() - started >= self.timeout_seconds:
                    self.num_timeouts += 1
                    reply = {"correct": False, "error": f"took longer than {self.timeout_seconds:g} seconds"}
                    break
            else:
                reply = {"correct": False, "error": "ended its process"}
        if reply["error"] is not None and self.task != "math":  # on model-written mathematics, failing is daily bread
            self._warn(f"failed ({reply['error']})")
        return bool(reply["correct"])

    def _ready_worker(self) -> _Worker:
        if self._worker is not None and self._worker.poll() is None:
            return self._worker
        self._end_worker()
        is_users = self.task != "math"
        if is_users and _INSIDE_WORKER in os.environ:
            raise ConfigurationError(
                f"the verifier {_name(self.task)} is wanted within a verifier's worker; expected only"
                ' "math" or "exact" there. If its module is also the script that runs, put what the script does under'
                ' `if __name__ == "__main__":`.'
            )
        # The worker is a program of its own rather than a multiprocessing child: that would import the user's main
        # module again. It leads a process group, so that Ctrl-C does not reach it and killing takes its children along.
        worker = self._worker = subprocess.Popen(
            [sys.executable, "-P", "-W", "ignore", str(Path(verifier_worker.__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if is_users else subprocess.DEVNULL,
            # sympy's results depend on the order of sets here and there: fix it, so that a verdict can be repeated
            env={**os.environ, _INSIDE_WORKER: "1", "PYTHONHASHSEED": "0"},
            start_new_session=True,
        )
        self._finalizer = weakref.finalize(self, _end, worker, os.getpid())
        setup = {
            "task": self.task,
            "paths": [str(Path.cwd()), *sys.path],
            "timeout_seconds": self.timeout_seconds,
            "memory_limit_bytes": int(self.memory_limit_gib * 2**30),
        }
        reply = self._exchange(worker, setup, _START_SECONDS)
        if reply is None or reply["error"] is not None:
            self._end_worker()
            reason = f"ended or hung within {_START_SECONDS:g} seconds" if reply is None else reply["error"]
            raise ConfigurationError(
                f"data.verifier is {_name(self.task)}, which cannot be loaded ({reason}); expected it to import from"
                f" {Path.cwd()} or the installed packages. Check the names, and that the module imports by itself."
            )
        return worker

    def _exchange(self, worker: _Worker, message: object, seconds: float) -> Any:
        """Send a line and return the line that comes back; None if the worker died or had to be killed."""
        assert worker.stdin is not None and worker.stdout is not None
        # A timer that kills bounds writing as well as reading, and works where pipes cannot be polled.
        timer = threading.Timer(seconds, _kill, (worker,))
        timer.daemon = True
        timer.start()
        line = b""
        try:
            worker.stdin.write(json.dumps(message).encode() + b"\n")  # ASCII, so that lone surrogates travel too
            worker.stdin.flush()
            line = worker.stdout.readline()
        except OSError:  # it died while we wrote
            pass
        except BaseException:  # Ctrl-C: the reply is still to come and would be taken for the next one's
            self._end_worker()
            raise
        finally:
            timer.cancel()
        return json.loads(line) if line.endswith(b"\n") else None

    def _end_worker(self) -> None:
        if self._worker is not None:
            self._finalizer()
            self._worker = None

    def _leave_parents_worker(self) -> None:
        """After a fork: two processes must not write to one worker, and the lock's holder may not exist here."""
        if self._owner != os.getpid():
            self._lock = threading.Lock()
            self._end_worker()
            self._owner = os.getpid()


def _check_name(task: Task) -> None:
    if task in _OWN_TASKS or callable(task) or (isinstance(task, str) and _USERS_TASK.fullmatch(task)):
        return
    nearest = difflib.get_close_matches(task, _OWN_TASKS, n=1) if isinstance(task, str) else []
    remedy = (
        f"Did you mean {nearest[0]!r}?"
        if nearest
        else 'A function of your own is named like "my_package.rewards:check".'
    )
    raise ConfigurationError(
        f'data.verifier is {task!r}; expected "math", "exact", "module:function" or a callable. {remedy}'
    )


def _name(task: Task) -> str:
    return repr(task) if isinstance(task, str) else getattr(task, "__qualname__", repr(task))


def _kill(worker: _Worker) -> None:
    if worker.poll() is not None:  # its number may belong to another process by now
        return
    with suppress(OSError):
        if hasattr(os, "killpg"):
            os.killpg(worker.pid, signal.SIGKILL)
        else:
            worker.kill()


def _end(worker: _Worker, owner: int) -> None:
    """Kill a worker, wait for its end and close our ends of its pipes; a forked child only closes."""
    if os.getpid() == owner:
        _kill(worker)
        worker.wait()
    else:
        worker.returncode = 0  # not ours to wait for; without this, Popen warns of a process left running
    for pipe in (worker.stdin, worker.stdout):
        if pipe is not None:
            with suppress(OSError):  # what could not be sent has nobody left to read it
                pipe.close()
