"""Ends Python code that does not end by itself, such as a template with an endless loop.

A second thread watches, and raises an exception in the first one. Unlike a signal this works in any thread and uses no
timer of the process; like a signal it waits until an operation in C returns.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["OutOfTime", "bounded"]

LOOKS_PER_SECOND = 4


class OutOfTime(BaseException):
    """Raised in the middle of foreign code; not an Exception, so that the code does not catch it."""


@contextmanager
def bounded(seconds: float) -> Iterator[Callable[[], None]]:
    """Raise `OutOfTime` here if `seconds` pass without a call of the function that is yielded.

    The watching thread counts its own waits, so that time in which the whole process was stopped does not count.
    """
    thread, lock, is_over = threading.get_ident(), threading.Lock(), threading.Event()
    num_steps = 0

    def step() -> None:
        nonlocal num_steps
        num_steps += 1

    def look_on() -> None:
        seen, looks = 0, 0.0
        while not is_over.wait(min(seconds, 1 / LOOKS_PER_SECOND)):
            looks = looks + 1 if seen == num_steps else 1
            seen = num_steps
            if looks >= seconds * LOOKS_PER_SECOND:
                with lock:
                    if not is_over.is_set():
                        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(OutOfTime))
                return

    onlooker = threading.Thread(target=look_on, name="time bound", daemon=True)
    onlooker.start()
    try:
        yield step
    finally:
        with lock:
            is_over.set()
        onlooker.join()
