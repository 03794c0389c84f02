"""Ctrl-C and SIGTERM, turned into one exception that arrives at a moment when the run can be saved.

A signal interrupts at once, in the middle of a rollout if need be: nothing of a step is kept until its update, so the
state before the step is whole. Only the update and the writing of files are protected; a signal that comes then is
raised right after. A second Ctrl-C is Python's own KeyboardInterrupt again, for those who cannot wait.

Where several processes share a run, a signal to one is one to all, and they stop at the same step: each interrupts what
it does apart from the others, and they leave together. All else waits for others, and is protected. There a second
Ctrl-C changes nothing, since launchers pass on a signal that the terminal has sent already.
"""

from __future__ import annotations

import _thread
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

from tutelage.errors import RunInterrupted, TutelageError
from tutelage.runtime import LocalRuntime

__all__ = ["Interruption"]

T = TypeVar("T")


class Interruption:
    """Context manager that owns SIGINT and SIGTERM while a run is in progress (main thread only)."""

    def __init__(self, runtime: LocalRuntime | None = None) -> None:
        self.runtime = runtime or LocalRuntime("cpu")
        self.reason: str | None = None
        self._protected = 0 if self.runtime.is_alone else 1
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._on_signal)
        self.runtime.begin_run(self._pass_on)
        return self

    def __exit__(self, *_: object) -> None:
        self.runtime.end_run()
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous.clear()

    @contextmanager
    def protected(self) -> Iterator[None]:
        """Let what is inside finish; a signal that came meanwhile is raised on leaving."""
        self._protected += 1
        try:
            yield
        except RunInterrupted as problem:  # from a display whose reader went away
            if self.runtime.is_alone:
                raise
            self._ask(str(problem))
        finally:
            self._protected -= 1
        self._raise_if_asked()

    @contextmanager
    def local_section(self) -> Iterator[None]:
        """What is inside needs no other process, and may be interrupted; all processes leave it together.

        Raises:
          RunInterrupted: in all of them, if one was asked to stop.
          TutelageError: in all of them, if one raised it inside.
        """
        if self.runtime.is_alone:
            yield
            return
        protected, problem = self._protected, None
        try:
            if not self.runtime.reads_teacher_together:
                self._protected -= 1
            self._raise_if_asked()
            yield
        except RunInterrupted as raised:
            self._ask(str(raised))
        except TutelageError as raised:
            problem = raised
            self.runtime.tell_stop(str(raised))
        finally:
            self._protected = protected
        if problem is None and self.reason is not None:
            problem = RunInterrupted(self.reason)
        agreed = self.runtime.agree(problem)
        if agreed is not None:
            raise agreed

    def map_shards(self, count: int, work: Callable[[slice], list[T]]) -> list[T]:
        """What the work of all processes, each on its share of `count` things, comes to; see `rollout.MapShards`."""
        with self.local_section():
            found = work(self.runtime.share(count))
        return self.runtime.gather(found)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.reason is not None and number == signal.SIGINT and self.runtime.is_alone:
            raise KeyboardInterrupt
        self._ask(self.runtime.stop_asked or f"stopped by {signal.Signals(number).name}")
        self._raise_if_asked()

    def _ask(self, reason: str) -> None:
        if self.reason is None:
            self.reason = reason
            self.runtime.tell_stop(reason)

    def _pass_on(self) -> None:
        """Interrupt the main thread, from another one, because of what another process did."""
        if self.reason is None:
            _thread.interrupt_main(signal.SIGTERM)

    def _raise_if_asked(self) -> None:
        if self.reason is not None and self._protected == 0:
            # Raised once; from here on the loop is saving, and must not be interrupted by its own exception.
            self._protected += 1
            raise RunInterrupted(self.reason)
