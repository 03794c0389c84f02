"""Ctrl-C and SIGTERM, turned into one exception that arrives at a moment when the run can be saved.

A signal interrupts at once, in the middle of a rollout if need be: nothing of a step is kept until its update, so the
state before the step is whole. Only the update and the writing of files are protected; a signal that comes then is
raised right after. A second Ctrl-C is Python's own KeyboardInterrupt again, for those who cannot wait.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from tutelage.errors import RunInterrupted

__all__ = ["Interruption"]


class Interruption:
    """Context manager that owns SIGINT and SIGTERM while a run is in progress (main thread only)."""

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self._protected = 0
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous.clear()

    @contextmanager
    def protected(self) -> Iterator[None]:
        """Let what is inside finish; a signal that came meanwhile is raised on leaving."""
        self._protected += 1
        try:
            yield
        finally:
            self._protected -= 1
        self._raise_if_asked()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.signal_name is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal_name = signal.Signals(number).name
        self._raise_if_asked()

    def _raise_if_asked(self) -> None:
        if self.signal_name is not None and self._protected == 0:
            # Raised once; from here on the loop is saving, and must not be interrupted by its own exception.
            self._protected += 1
            raise RunInterrupted(f"stopped by {self.signal_name}")
