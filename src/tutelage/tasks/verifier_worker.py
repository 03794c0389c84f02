"""The process in which `verifiers.py` has answers judged: a JSON line in, a JSON line out, until its input ends.

It is a process of its own because an answer such as 9^{9^{9^{9}}} keeps the algebra busy inside C code, where neither
signals nor threads can stop it, and takes all memory if it can. It is started by file name and imports nothing of
Tutelage, so that it is ready as soon as its judge is, and a crash in it is not a crash of the run.

    first line in   {"task", "paths", "timeout_seconds", "memory_limit_bytes"}    out   {"error": null or why it cannot}
    then            [response, answer]                                            out   {"correct", "error"}
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import IO, Any

__all__ = ["is_correct", "main"]

Judge = Callable[[str, str], Any]

# An orphan whose judge hangs never gets to see that its input ended: the kernel's alarm ends it, this much after the
# parent would have.
_ORPHAN_GRACE_SECONDS = 2.0


def is_correct(score: object) -> bool:
    """What a user's verdict means: True, or a score of at least 0.5 (so both 0/1 and -1/1 scores read as meant).

    Raises:
        TypeError: neither a truth value nor a number.
    """
    if score is None or isinstance(score, str | bytes):
        raise TypeError(f"the verifier returned {score!r}; expected True, False or a score from 0 to 1")
    return float(score) >= 0.5  # type: ignore[arg-type]


def main() -> None:
    """Serve the requests on standard input until it ends."""
    # The pipe belongs to the protocol alone: what libraries print goes to standard error, and they read nothing.
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)

    setup = json.loads(requests.readline())
    try:
        judge = _math_judge() if setup["task"] == "math" else _users_judge(setup["task"], setup["paths"])
    except BaseException as error:  # importing a user's module may raise anything, SystemExit included
        _reply(replies, {"error": _describe(error)})
        return
    high_water_bytes = _virtual_bytes() + setup["memory_limit_bytes"] / 2
    _limit_memory(setup["memory_limit_bytes"])
    _reply(replies, {"error": None})

    for line in requests:
        _set_alarm(setup["timeout_seconds"] + _ORPHAN_GRACE_SECONDS)
        response, answer = json.loads(line)
        try:
            correct, failure = is_correct(judge(response, answer)), None
        except BaseException as error:
            correct, failure = False, _describe(error)
        _set_alarm(0.0)
        _reply(replies, {"correct": correct, "error": failure})
        if _virtual_bytes() > high_water_bytes:
            break  # a fresh process has all its memory again; going on could make right answers fail for lack of it
    os._exit(0)  # not through sys.exit: a user's threads could keep an orphan alive


def _reply(replies: IO[bytes], message: dict[str, Any]) -> None:
    replies.write(json.dumps(message).encode() + b"\n")
    replies.flush()


def _describe(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:500]
    except BaseException:  # a user's exception whose __str__ fails
        return type(error).__name__


def _math_judge() -> Judge:
    logging.disable(logging.CRITICAL)  # math-verify warns that nobody bounds its time; the parent does
    from math_verify import parse, verify

    # no time-outs of its own: they need SIGALRM, which does not get through to C code and here guards against orphans
    @functools.lru_cache(maxsize=1024)
    def parse_boxed(text: str) -> Any:
        # a box is the one wrapping in which math-verify reads "$1$, $2$", "\$18.90" and "x = 5" alike
        return parse("\\boxed{" + text + "}", parsing_timeout=None)

    def judge(candidate: str, reference: str) -> bool:
        # the order matters: math-verify lets the gold answer decide how the other is read
        return bool(verify(gold=parse_boxed(reference), target=parse_boxed(candidate), timeout_seconds=None))

    judge("y + x", "x + y")  # the first one builds the grammar's tables, which is no answer's fault
    return judge


def _users_judge(task: str, paths: list[str]) -> Judge:
    module_name, _, function_name = task.partition(":")
    sys.path[:] = paths
    judge = functools.reduce(getattr, function_name.split("."), importlib.import_module(module_name))
    if not callable(judge):
        raise TypeError(f"{task} is a {type(judge).__name__}, not a function")
    return judge


def _limit_memory(limit_bytes: int) -> None:
    """Cap what the process may map on top of what its imports did, where the system can."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # not on Windows; a stricter limit may be in force
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (_virtual_bytes() + limit_bytes,) * 2)


def _virtual_bytes() -> int:
    """Address space in use, or 0 where the system does not say."""
    try:
        with open("/proc/self/statm", "rb") as statm:  # noqa: PTH123
            return int(statm.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _set_alarm(seconds: float) -> None:
    """Have the kernel end this process after so many seconds; 0 = not any more."""
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # the default action needs no Python to run
        signal.setitimer(signal.ITIMER_REAL, seconds)


if __name__ == "__main__":
    main()
