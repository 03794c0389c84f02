"""Is every process of the run still there, and was one of them asked to stop?  Two threads keep asking.

What torch leaves open (measured in docs/design/runtime.md):

- gloo and NCCL notice at once a peer whose connections close, and name an address, not a rank. A peer that hangs, or
  whose machine is gone, they notice when the process group's timeout ends: half an hour here.
- torchrun's agent watches the exit codes of the processes on its own node.
- Neither passes on a request to stop, or the reason why a process ended.
- While a collective waits, no Python code runs, so signals wait too. gloo cannot abort it, and a process that gives it
  up does not exit before the timeout.
- A call to a store whose server hangs does not return, whatever the client's timeout is.

So each process keeps a line in the store that torchrun, or rank 0, serves anyway: a counter, why the run is to stop,
why the process ended. The run ends when a counter stands still, or when the store does not answer.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

__all__ = ["Heartbeat", "loss_message"]

SECONDS_PER_BEAT = 1.0
SECONDS_PER_LOOK = 0.1
# Longer than a busy machine keeps a thread from running, shorter than torchrun waits (30 seconds) before it kills.
LOST_AFTER_SECONDS = 20.0
# The time that a collective has to fail by itself, once a process is lost.
GRACE_SECONDS = 10.0


class Heartbeat:
    """Tells the other processes about this one and listens to them, until `stop`.

    Args:
      store: a torch store that all processes share.
      rank, size: number of this process, and how many there are.

    Fields:
      lost: why the run cannot go on, once another process is gone.
      on_stop_request: called by another thread, repeatedly, as long as there is a reason to stop or a loss.
      is_waiting: the main thread waits for other processes inside a library.
    """

    def __init__(self, store: Any, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self.lost: str | None = None
        self.on_stop_request: Callable[[], None] = lambda: None
        self.is_waiting = False
        self._store = store.clone()  # a client serves one thread at a time
        self._seen: dict[int, tuple[Any, float]] = {peer: (None, 0.0) for peer in range(size) if peer != rank}
        self._num_beats, self._run = 0, 0
        self._stop_reasons: dict[int, str] = {}  # by run: a request may come late, or before its run begins here
        self._store_silence = 0.0
        self._stopping = threading.Event()
        self._tell()
        self._exchange = threading.Thread(target=self._keep_exchanging, name="heartbeat", daemon=True)
        self._exchange.start()
        threading.Thread(target=self._watch, name="heartbeat's watch", daemon=True).start()

    @property
    def stop_reason(self) -> str | None:
        """Why this process or another one was asked to stop the present run."""
        return self._stop_reasons.get(self._run)

    def begin_run(self, on_stop_request: Callable[[], None]) -> None:
        """Begin the next run. Requests to stop an earlier run have no effect on it."""
        self._run += 1
        self.on_stop_request = on_stop_request

    def request_stop(self, reason: str) -> None:
        """Ask all processes to stop the present run. May be called by a signal handler."""
        self._stop_reasons.setdefault(self._run, reason)

    def stop(self, ended: str) -> None:
        """Tell the others why this process ends: "" after the last step. Never returns if the store does not answer."""
        self._stopping.set()
        self._exchange.join()
        try:
            self._tell(ended)
            # Rank 0 may serve the store, so it stays until the others have ended too.
            while self._listen() and self.rank == 0:
                time.sleep(SECONDS_PER_BEAT / 20)
        except RuntimeError:  # the process that served the store is gone
            return

    def verdict(self) -> str | None:
        """Which process is lost; waits until that can be known, less than half a minute."""
        deadline = time.monotonic() + LOST_AFTER_SECONDS + 3 * SECONDS_PER_BEAT
        while self.lost is None and time.monotonic() < deadline:
            time.sleep(SECONDS_PER_LOOK)
        return self.lost

    def _keep_exchanging(self) -> None:
        try:
            while not self._stopping.wait(SECONDS_PER_BEAT):
                self._tell()
                self._listen()
                self._store_silence = 0.0
        except RuntimeError:  # a client does not reconnect; `_watch` notices that this thread is silent
            return

    def _tell(self, ended: str | None = None) -> None:
        self._num_beats += 1
        run = self._run
        line = {"beat": self._num_beats, "run": run, "stop": self._stop_reasons.get(run), "ended": ended}
        self._store.set(f"beat/{self.rank}", json.dumps(line))

    def _listen(self) -> bool:
        """Read the others' lines, once all have written one; return whether any of them is still at work."""
        keys = [f"beat/{peer}" for peer in self._seen]
        if not self._store.check(keys):
            return True
        num_at_work = 0
        for peer, text in zip(self._seen, self._store.multi_get(keys), strict=True):
            line, now = json.loads(text), time.monotonic()
            if line != self._seen[peer][0]:
                self._seen[peer] = line, now
            is_silent = now - self._seen[peer][1] > LOST_AFTER_SECONDS
            if line["ended"]:
                self._lose(f"rank {peer} of {self.size} has ended: {line['ended']}")
            elif line["ended"] is None and is_silent:
                self._lose(f"rank {peer} of {self.size} has given no sign of life for {LOST_AFTER_SECONDS:g} seconds")
            elif line["ended"] is None:
                num_at_work += 1
            if line["stop"]:
                self._stop_reasons.setdefault(line["run"], line["stop"])
        return num_at_work > 0

    def _lose(self, reason: str) -> None:
        if self.lost is None and not self._stopping.is_set():
            self.lost = reason

    def _watch(self) -> None:
        """Report requests and losses, notice a store that does not answer, end a process that is stuck."""
        seconds_stuck = 0.0
        # Counts its own rounds instead of reading a clock: a pause of this whole process is no silence of the store.
        while not self._stopping.wait(SECONDS_PER_LOOK):
            self._store_silence += SECONDS_PER_LOOK
            if self._store_silence > LOST_AFTER_SECONDS:
                self._lose("rank 0, or the launcher on its node, cannot be reached any more")
            if self.stop_reason is not None or self.lost is not None:
                self.on_stop_request()
            seconds_stuck = seconds_stuck + SECONDS_PER_LOOK if self.lost is not None and self.is_waiting else 0.0
            if seconds_stuck > GRACE_SECONDS:
                sys.stderr.write(f"error: {loss_message(str(self.lost))}\n")
                sys.stderr.flush()
                os._exit(2)


def loss_message(lost: str) -> str:
    """The message for a person when a process is lost."""
    return (
        f"{lost}. The run ends here, and its last checkpoint stays. Find out why that process ended (its own output, "
        "the machine's memory and network), then start all processes again with --resume."
    )
