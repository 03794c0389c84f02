"""The processes of one run, as torchrun or `accelerate launch` started them, and what they exchange.

torch finds the processes (by RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, which may also be set by hand),
sends numbers and records over gloo on the CPU and gradients over NCCL between GPUs, and bounds every wait by a timeout.
What it does not do is here: a wait ends soon after the heartbeat has lost a process, a long wait lets signals through,
an exception of rank 0 is raised in all processes, and a person reads one message instead of one per process.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from tutelage.errors import ConfigurationError, RunInterrupted, TutelageError, WorkerLostError, in_short
from tutelage.runtime.heartbeat import Heartbeat, loss_message

__all__ = ["Processes", "is_first_process", "joined"]

T = TypeVar("T")

MEETING_SECONDS = 300  # in which all processes of a run must have been started
GOODBYE_SECONDS = 5.0
SECONDS_PER_LOOK = 0.002
SECONDS_FOR_RANK_0 = 0.5


class Processes:
    """This process among those of its run.

    Args:
      store: a torch store that all processes share.

    Fields:
      rank, size: number of this process, and how many there are.
      local_rank: its number on its machine.
    """

    def __init__(self, store: Any, rank: int, size: int, local_rank: int) -> None:
        self.rank, self.size, self.local_rank = rank, size, local_rank
        self._store = store
        self.heartbeat = Heartbeat(store, rank, size)
        self._is_connected = False
        # Registered first, so called last: from here torch would wait for the collective that was given up.
        atexit.register(self._leave_if_lost)

    def connect(self, device: str, timeout_seconds: float) -> None:
        """Open the process group, once; `timeout_seconds` bounds every wait from here on."""
        if self._is_connected:
            return
        is_cuda = device.startswith("cuda")
        with self.waiting():
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if is_cuda else "gloo",
                store=self._store,
                rank=self.rank,
                world_size=self.size,
                timeout=timedelta(seconds=timeout_seconds),
                device_id=torch.device(device) if is_cuda else None,
            )
        self._is_connected = True

    def all_sum(self, value: float) -> float:
        """The sum over all processes."""
        total = torch.tensor(value, dtype=torch.float64)
        with self.waiting():
            dist.all_reduce(total)
        return float(total)

    def gather(self, item: T) -> list[T]:
        """Each process's item, by rank."""
        found: list[Any] = [None] * self.size
        with self.waiting():
            dist.all_gather_object(found, item)
        return found

    def from_first(self, find: Callable[[], T]) -> T:
        """Return in all processes what `find` returns on rank 0, or raise what it raises."""
        answer: list[Any] = [None, None]
        if self.rank == 0:
            try:
                answer[0] = find()
            except (TutelageError, OSError) as problem:
                answer[1] = problem
        with self.waiting():
            dist.broadcast_object_list(answer, src=0)
        if answer[1] is not None:
            raise answer[1]
        found: T = answer[0]
        return found

    def exchange(self, numbers: list[int], *, patiently: bool = False) -> list[int]:
        """The sums over all processes of a few counts.

        Args:
          patiently: the others may take long, so this wait lets signals through and ends when a process is lost.
        """
        sums = torch.tensor(numbers)
        with self.waiting():
            work: Any = dist.all_reduce(sums, async_op=True)
            while patiently and not work.is_completed():
                if self.heartbeat.lost is not None:
                    raise WorkerLostError(loss_message(self.heartbeat.lost))
                time.sleep(SECONDS_PER_LOOK)
            work.wait()
        return [int(number) for number in sums]

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Surrounds whatever waits for other processes.

        Raises:
          WorkerLostError: one of them is gone, or did not arrive in time.
        """
        was_waiting, self.heartbeat.is_waiting = self.heartbeat.is_waiting, True
        try:
            yield
        except RuntimeError as problem:
            if isinstance(problem, TutelageError) or not _is_of_the_network(problem):
                raise
            lost = self.heartbeat.verdict() or f"the processes did not come together ({in_short(problem)})"
            raise WorkerLostError(loss_message(lost)) from problem
        finally:
            self.heartbeat.is_waiting = was_waiting

    def close(self, problem: BaseException | None) -> None:
        """Tell the others how this process ended, and mark a problem that another one has already reported."""
        ended = "" if problem is None or isinstance(problem, RunInterrupted) else in_short(problem)
        # On a thread of its own, since a store that does not answer knows no timeout.
        goodbye = threading.Thread(target=self._say_goodbye, args=(problem, ended), daemon=True)
        goodbye.start()
        goodbye.join(GOODBYE_SECONDS)
        if self._is_connected and not ended:
            dist.destroy_process_group()

    def _say_goodbye(self, problem: BaseException | None, ended: str) -> None:
        if problem is not None:
            problem.is_reported = not self._reports_first(str(problem))  # type: ignore[attr-defined]
        self.heartbeat.stop(ended)

    def _reports_first(self, text: str) -> bool:
        key = "reported/" + hashlib.sha256(text.encode()).hexdigest()
        if self.rank:
            time.sleep(SECONDS_FOR_RANK_0)  # its output is where people look
        try:
            return int(self._store.add(key, 1)) == 1
        except RuntimeError:
            return True

    def _leave_if_lost(self) -> None:
        if self.heartbeat.lost is not None:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(2)


@contextmanager
def joined() -> Iterator[Processes | None]:
    """Find the other processes of this run. None = there are none, and nothing is set up.

    Raises:
      ConfigurationError: the environment is incomplete, or the others did not arrive within five minutes.
    """
    processes = _meet()
    if processes is None:
        yield None
        return
    try:
        yield processes
    except BaseException as problem:
        # When one process has ended, a launcher ends the others; they report their problem first.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        processes.close(problem)
        raise
    else:
        processes.close(None)


def is_first_process() -> bool:
    """This process is alone, or a launcher started it as rank 0."""
    return int(os.environ.get("WORLD_SIZE", "1")) <= 1 or os.environ.get("RANK", "0") == "0"


def _meet() -> Processes | None:
    try:
        if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
            return None
        store, rank, size = next(dist.rendezvous("env://", timeout=timedelta(seconds=MEETING_SECONDS)))
        # When torchrun restarts all processes, its store still holds the lines of those before.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return Processes(dist.PrefixStore(f"tutelage/{attempt}", store), rank, size, dist.get_node_local_rank(0))
    except ValueError as problem:
        raise ConfigurationError(
            f"the environment does not say which process this is ({in_short(problem)}); RANK, WORLD_SIZE, MASTER_ADDR "
            "and MASTER_PORT are expected. Start the run with torchrun or accelerate launch, or set them all."
        ) from None
    except (RuntimeError, OSError) as problem:
        rank, size, host, port = (os.environ[name] for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))
        raise ConfigurationError(
            f"rank {rank} of {size} found no other process at {host}:{port} ({in_short(problem)}). Start all processes "
            f"within {MEETING_SECONDS} seconds, with the same address, which must be that of rank 0's machine."
        ) from None


def _is_of_the_network(problem: RuntimeError) -> bool:
    text = str(problem).lower()
    return isinstance(problem, dist.DistError) or any(word in text for word in ("gloo", "nccl", "connection"))
