"""Is every process of the run still there?  A thread says so once a second, and looks what the others say.

A process that dies leaves the others waiting in a sum that never comes; with NCCL, for as long as the GPU spins. So
each process writes a counter into the store that torch's launcher (or rank 0) keeps anyway, and whoever sees a counter
stand still ends the run. The same lines carry the wish to stop and the reason why a process ended.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["CONNECT_SECONDS", "Heartbeat", "farewell"]

SECONDS_PER_BEAT = 1.0
# Longer than a thread is kept from running by a busy machine, shorter than launchers wait before they kill.
LOST_AFTER_SECONDS = 20.0
# What the main thread, stuck in a collective that cannot end, is given to notice by itself.
GRACE_SECONDS = 10.0
FAREWELL_SECONDS = 5.0
CONNECT_SECONDS = 5.0


@dataclass
class _Peer:
    line: bytes = b""
    since: float = 0.0


class Heartbeat(threading.Thread):
    """Tells of this process, hears of the others.

    Args:
      connect: opens a store of this thread's own, since one client serves one caller at a time.
      rank, size: of this process, and how many there are.

    Fields:
      lost: why the run cannot go on, once another process is gone.
      stop_asked: why another process was asked to stop.
      on_news: called when one of the two changes.
      waits_since: when the main thread began to wait for others inside a library; None = it does not.
    """

    def __init__(self, connect: Callable[[], Any], rank: int, size: int) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self.connect, self.rank, self.size = connect, rank, size
        self.lost: str | None = None
        self.stop_asked: str | None = None
        self.on_news: Callable[[], None] = lambda: None
        self.waits_since: float | None = None
        self._store = connect()
        self._peers = {peer: _Peer(since=time.monotonic()) for peer in range(size) if peer != rank}
        self._told: dict[str, Any] = {"beat": 0, "run": 0, "stop": None, "ended": None}
        self._run_lock = threading.Lock()
        self._reached = time.monotonic()
        self._lost_since = 0.0
        self._closing = threading.Event()
        self._tell()

    @property
    def is_stop_asked(self) -> bool:
        """This process or another one was asked to stop."""
        return self.stop_asked is not None or self._told["stop"] is not None

    def begin_run(self, ring: Callable[[], None]) -> None:
        """Have `ring` called at the news of a run that begins; wishes to stop an earlier one are over, however late."""
        with self._run_lock:
            self._told |= {"run": self._told["run"] + 1, "stop": None}
            self.stop_asked, self.on_news = None, ring

    def tell_stop(self, reason: str) -> None:
        """Pass on that this process was asked to stop, with the next beat."""
        self._told["stop"] = reason

    def close(self, ended: str) -> None:
        """Say goodbye: "" after the last step, or what went wrong."""
        self._closing.set()
        self.join(timeout=2 * CONNECT_SECONDS)
        self._told["ended"] = ended
        try:
            self._tell()
            # Rank 0 may keep the store: it stays until the others have said goodbye too.
            patience = time.monotonic() + (FAREWELL_SECONDS if self.rank == 0 else 0)
            while time.monotonic() < patience and not self._are_gone():
                time.sleep(SECONDS_PER_BEAT / 20)
        except RuntimeError:  # the store is gone with the process that kept it; nobody is left to tell
            return

    def verdict(self) -> str | None:
        """Who is lost; waits until that can be known, less than half a minute."""
        patience = time.monotonic() + LOST_AFTER_SECONDS + CONNECT_SECONDS + 2 * SECONDS_PER_BEAT
        while self.lost is None and time.monotonic() < patience:
            time.sleep(SECONDS_PER_BEAT / 10)
        return self.lost

    def run(self) -> None:
        while not self._closing.wait(SECONDS_PER_BEAT):
            try:
                self._tell()
                self._listen()
                self._reached = time.monotonic()
            except (RuntimeError, OSError):  # torch's network errors, and ours
                self._reconnect()
            self._end_if_stuck()

    def _tell(self) -> None:
        self._told["beat"] += 1
        self._store.set(f"beat/{self.rank}", json.dumps(self._told))

    def _listen(self) -> None:
        known = [peer for peer in self._peers if self._store.check([f"beat/{peer}"])]
        lines = self._store.multi_get([f"beat/{peer}" for peer in known])
        for number, line in zip(known, lines, strict=True):
            peer, now = self._peers[number], time.monotonic()
            if line != peer.line:
                peer.line, peer.since = line, now
            said = json.loads(line)
            if said["ended"]:
                self._lose(f"rank {number} of {self.size} has ended: {said['ended']}")
            elif said["ended"] is None and now - peer.since > LOST_AFTER_SECONDS:
                self._lose(f"rank {number} of {self.size} has given no sign of life for {LOST_AFTER_SECONDS:g} seconds")
            with self._run_lock:
                if said["stop"] and said["run"] == self._told["run"] and self.stop_asked is None:
                    self.stop_asked = said["stop"]
                    self.on_news()

    def _are_gone(self) -> bool:
        lines = [f"beat/{peer}" for peer in self._peers]
        return self._store.check(lines) and all(
            json.loads(line)["ended"] is not None for line in self._store.multi_get(lines)
        )

    def _reconnect(self) -> None:
        if time.monotonic() - self._reached > LOST_AFTER_SECONDS:
            self._lose("rank 0, or the launcher on its node, cannot be reached any more")
            return
        try:
            self._store = self.connect()
        except (RuntimeError, OSError):
            return

    def _lose(self, reason: str) -> None:
        if self.lost is None:
            self._lost_since, self.lost = time.monotonic(), reason
            self.on_news()

    def _end_if_stuck(self) -> None:
        if self.lost is None or self.waits_since is None:
            return
        if time.monotonic() - max(self._lost_since, self.waits_since) > GRACE_SECONDS:
            sys.stderr.write(f"error: {farewell(self.lost)}\n")
            sys.stderr.flush()
            os._exit(2)


def farewell(lost: str) -> str:
    """What a person is told when a process is gone."""
    return (
        f"{lost}. The run ends here, and its last checkpoint stays. Find out why that process ended (its own output, "
        "the machine's memory and network), then start all processes again with --resume."
    )
