"""Ctrl-C and SIGTERM become one exception, raised when the run can be saved.

A signal interrupts at once, even in the middle of a rollout: nothing of a step is kept before its update, so the state
before the step is complete. Only the update and the writing of files are protected; a signal that arrives meanwhile is
raised right after. A second Ctrl-C raises Python's own KeyboardInterrupt, for those who cannot wait.

If several processes share a run, a signal to one of them stops all of them at the same step: each interrupts its local
section, and they leave it together. Everything else waits for other processes, and is protected. A second Ctrl-C then
has no effect, because launchers pass on the signal that the terminal has already sent to every process.
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
    """Context manager that owns SIGINT and SIGTERM while a run is in progress, and gives them back afterwards.

    In the main thread only, which alone may. A handler that was not set from Python, as where Python is embedded in
    another program, could not be given back, so that signal stays as it is.
    """

    def __init__(self, runtime: LocalRuntime | None = None) -> None:
        self.runtime = runtime or LocalRuntime("cpu")
        self.reason: str | None = None
        self._protected = 0 if self.runtime.is_alone else 1
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not None:
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
        """Let the body finish; a signal that arrives meanwhile is raised afterwards."""
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
        """The body needs no other process, and may be interrupted; all processes leave it together.

        Raises:
          RunInterrupted: in all processes, if one was asked to stop.
          TutelageError: in all processes, if the body raised it in one.
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
        finally:
            self._protected = protected
        if problem is not None:
            self.runtime.request_stop(str(problem))  # the others need not finish their local sections
        elif self.reason is not None:
            problem = RunInterrupted(self.reason)
        agreed = self.runtime.agree(problem)
        if agreed is not None:
            raise agreed

    def map_shards(self, count: int, work: Callable[[slice], list[T]]) -> list[T]:
        """The results of all processes, each of which works on its share of `count` things; see `rollout.MapShards`."""
        with self.local_section():
            found = work(self.runtime.share(count))
        return self.runtime.gather(found)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.reason is not None and number == signal.SIGINT and self.runtime.is_alone:
            raise KeyboardInterrupt
        self._ask(self.runtime.stop_reason or f"stopped by {signal.Signals(number).name}")
        self._raise_if_asked()

    def _ask(self, reason: str) -> None:
        if self.reason is None:
            self.reason = reason
            self.runtime.request_stop(reason)

    def _pass_on(self) -> None:
        """Interrupt the main thread, from another thread, because of another process."""
        if self.reason is None:
            _thread.interrupt_main(signal.SIGTERM)

    def _raise_if_asked(self) -> None:
        if self.reason is not None and self._protected == 0:
            # Raised once: from here on the loop saves the run, and must not be interrupted again.
            self._protected += 1
            raise RunInterrupted(self.reason)
