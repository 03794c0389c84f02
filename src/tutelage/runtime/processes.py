"""The processes of one run, as torchrun or `accelerate launch` started them: what they tell each other.

Both launchers say in the environment who a process is (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT), and so
may a person by hand. Numbers and records travel over gloo on the CPU, gradients over NCCL where there are GPUs. Every
wait is bounded, and ends at once when the heartbeat sees that somebody is gone.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from tutelage.errors import ConfigurationError, RunInterrupted, TutelageError, WorkerLostError, in_short
from tutelage.runtime.heartbeat import CONNECT_SECONDS, Heartbeat, farewell

__all__ = ["Processes", "joined"]

T = TypeVar("T")

NAMES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
MEETING_SECONDS = 300  # in which all processes of a run must have been started
SECONDS_PER_LOOK = 0.002
SECONDS_FOR_RANK_0 = 0.5


class Processes:
    """This process among those of its run.

    Fields:
      rank, size: number of this process, and how many there are.
      local_rank: its number on its machine.
    """

    def __init__(self, rank: int, size: int, local_rank: int, store: Any, connect: Callable[[], Any]) -> None:
        self.rank, self.size, self.local_rank = rank, size, local_rank
        self._store = store
        self.heartbeat = Heartbeat(connect, rank, size)
        self.heartbeat.start()
        self._is_connected = False
        # Registered before anything else is, so called after it: a broken collective would keep the process for good.
        atexit.register(self._leave_if_lost)

    def connect(self, device: str, timeout_seconds: float) -> None:
        """Open the ways to the others, once; `timeout_seconds` bounds every wait from here on."""
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
        """Everybody's item, by rank."""
        found: list[Any] = [None] * self.size
        with self.waiting():
            dist.all_gather_object(found, item)
        return found

    def from_first(self, find: Callable[[], T]) -> T:
        """What rank 0 finds, or raises, everywhere."""
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
          patiently: the others may take long, so signals and losses are attended to meanwhile.
        """
        sums = torch.tensor(numbers)
        with self.waiting():
            work: Any = dist.all_reduce(sums, async_op=True)
            while patiently and not work.is_completed():
                if self.heartbeat.lost is not None:
                    raise WorkerLostError(farewell(self.heartbeat.lost))
                time.sleep(SECONDS_PER_LOOK)
            work.wait()
        return [int(number) for number in sums]

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around whatever waits for other processes.

        Raises:
          WorkerLostError: one of them is gone, or did not come in time.
        """
        self.heartbeat.waits_since = time.monotonic()
        try:
            yield
        except RuntimeError as problem:
            if isinstance(problem, TutelageError) or not _is_of_the_network(problem):
                raise
            lost = self.heartbeat.verdict() or f"the processes did not come together ({in_short(problem)})"
            raise WorkerLostError(farewell(lost)) from problem
        finally:
            self.heartbeat.waits_since = None

    def close(self, problem: BaseException | None) -> None:
        """Tell the others how it ended here, and mark what one of them has said already."""
        text = None if problem is None else in_short(problem)
        if problem is not None and text is not None:
            problem.is_said = not self._says_first(str(problem))  # type: ignore[attr-defined]
        is_agreed = problem is None or isinstance(problem, RunInterrupted)
        self.heartbeat.close("" if is_agreed else text or "")
        if self._is_connected and is_agreed:
            dist.destroy_process_group()

    def _says_first(self, text: str) -> bool:
        key = "said/" + hashlib.sha256(text.encode()).hexdigest()
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
    """Find the other processes of this run; None = there is none, and nothing is set up.

    Raises:
      ConfigurationError: the environment says half of it, or the others did not come within five minutes.
    """
    where = _place()
    if where is None:
        yield None
        return
    rank, size, local_rank, host, port = where
    again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    patience = timedelta(seconds=MEETING_SECONDS)

    def connect() -> Any:
        socket.create_connection((host, port), CONNECT_SECONDS).close()  # torch's own attempt fails with a stack of C++
        short = timedelta(seconds=CONNECT_SECONDS)
        own = dist.TCPStore(host, port, is_master=False, timeout=short, wait_for_workers=False)
        return dist.PrefixStore(f"tutelage/{again}", own)

    try:
        store, _, _ = next(dist.rendezvous("env://", timeout=patience))
        processes = Processes(rank, size, local_rank, dist.PrefixStore(f"tutelage/{again}", store), connect)
    except (RuntimeError, OSError) as problem:
        raise ConfigurationError(
            f"rank {rank} of {size} found no other process at {host}:{port} ({in_short(problem)}). Start all "
            f"processes within {MEETING_SECONDS} seconds, with the same address, which rank 0's machine must have."
        ) from None
    try:
        yield processes
    except BaseException as problem:
        # Once the first process has gone, a launcher ends the others; what they have to say is still to be said.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        processes.close(problem)
        raise
    else:
        processes.close(None)


def _place() -> tuple[int, int, int, str, int] | None:
    """Rank, world size, local rank, address and port of the meeting place; None = this process is alone."""
    try:
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size <= 1:
            return None
        rank, local_rank = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
        return rank, size, local_rank, os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    except (KeyError, ValueError) as problem:
        raise ConfigurationError(
            f"the environment does not say which process this is ({problem}); {', '.join(NAMES)} are expected. Start "
            "the run with torchrun or accelerate launch, or set them all."
        ) from None


def _is_of_the_network(problem: RuntimeError) -> bool:
    text = str(problem).lower()
    return isinstance(problem, dist.DistError) or any(word in text for word in ("gloo", "nccl", "connection"))
