"""Several processes: each has its share of a step's prompts, and all make one update together.

"ddp": every process holds the whole student, the gradient and AdamW's moments. Gradients are summed once per update, in
buckets. DistributedDataParallel does the same under `no_sync`. Its wrapper is not used, because losses are divided by
the token count of the global batch (so gradients are summed, not averaged), and a process may have no answer at all.

"fsdp2": see `sharded`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from tutelage.errors import ConfigurationError, RunInterrupted, TutelageError
from tutelage.models import LanguageModel
from tutelage.runtime.local import Learner, LocalRuntime
from tutelage.runtime.processes import Processes
from tutelage.runtime.sharded import JointReading, ShardedLearner, shard_frozen

__all__ = ["DistributedRuntime"]

T = TypeVar("T")

BUCKET_BYTES = 64 * 2**20


@dataclass(frozen=True, kw_only=True)
class DistributedRuntime(LocalRuntime):
    """This process's part of a run that several processes share.

    Fields:
      device: "auto" and "cuda" mean this process's own GPU, if there are GPUs.
      processes: this process and the others.
      strategy: "ddp" or "fsdp2".
      shards_teacher: each process keeps a part of every layer of the teacher, and gathers one layer at a time.
      timeout_seconds: longest wait for another process.
    """

    processes: Processes
    strategy: str
    shards_teacher: bool
    timeout_seconds: float
    _readings: list[JointReading] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        local_rank = self.processes.local_rank
        if self.device == "auto" and not torch.cuda.is_available():
            object.__setattr__(self, "device", "cpu")
        super().__post_init__()
        kind, _, number = self.device.partition(":")
        if kind == "mps" or number:
            raise ConfigurationError(
                f"runtime.device is {self.device!r}, and there are {self.processes.size} processes; each takes a GPU "
                "of its own, or the CPU. Use 'auto', 'cuda' or 'cpu'."
            )
        if kind == "cuda":
            if local_rank >= torch.cuda.device_count():
                raise ConfigurationError(
                    f"this machine has {torch.cuda.device_count()} GPUs, none left for process {local_rank + 1}. Start "
                    "as many processes as there are GPUs (--nproc-per-node)."
                )
            object.__setattr__(self, "device", f"cuda:{local_rank}")
            torch.cuda.set_device(local_rank)
        self.processes.connect(self.device, self.timeout_seconds)

    @property
    def is_alone(self) -> bool:
        return False

    @property
    def is_first(self) -> bool:
        return self.processes.rank == 0

    @property
    def reads_teacher_together(self) -> bool:
        return bool(self._readings)

    @property
    def stop_reason(self) -> str | None:
        return self.processes.heartbeat.stop_reason

    def begin_run(self, on_stop_request: Callable[[], None]) -> None:
        self.processes.heartbeat.begin_run(on_stop_request)

    def end_run(self) -> None:
        self.processes.heartbeat.on_stop_request = lambda: None

    def request_stop(self, reason: str) -> None:
        self.processes.heartbeat.request_stop(reason)

    def share(self, count: int) -> slice:
        rank, size = self.processes.rank, self.processes.size
        return slice(count * rank // size, count * (rank + 1) // size)

    def all_sum(self, value: float) -> float:
        return self.processes.all_sum(value)

    def gather(self, items: list[T]) -> list[T]:
        return [item for part in self.processes.gather(items) for item in part]

    def from_first(self, find: Callable[[], T]) -> T:
        return self.processes.from_first(find)

    def agree(self, problem: TutelageError | None) -> TutelageError | None:
        for reading in self._readings:
            reading.attend()
        (num_problems,) = self.processes.exchange([int(problem is not None)], patiently=True)
        if not num_problems:
            return None
        raised = [each for each in self.processes.gather(problem) if each is not None]
        # A process that was asked to stop because of another one's problem raises RunInterrupted.
        return min(raised, key=lambda each: isinstance(each, RunInterrupted))

    def check_equal(self, what: str, value: object) -> None:
        """Refuse the run unless all processes have the same value.

        Raises:
          ConfigurationError: names the first process whose value is not that of rank 0.
        """
        first, *others = self.processes.gather(value)
        for rank, other in enumerate(others, start=1):
            if other != first:
                raise ConfigurationError(
                    f"{what}: rank {rank} has something else than rank 0. Start all processes of a run with the same "
                    "command, run file, data, model files and libraries."
                )

    def learner(self, student: LanguageModel) -> Learner:
        self.check_equal("the student", _fingerprint(student.module))
        if self.strategy == "ddp":
            return Learner(student)
        return ShardedLearner.of(student, self._mesh(), self.processes)

    def placed_teacher(self, load: Callable[[str], LanguageModel]) -> LanguageModel:
        if not self.shards_teacher:
            return load(self.device)
        # Loaded on the CPU. Its layers then go to the device one by one, since the whole may not fit there.
        teacher = shard_frozen(load("cpu"), self._mesh())
        self._readings.append(JointReading(teacher, self.processes))
        return teacher

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        with self.processes.waiting():
            _sum_gradients(parameters)

    def update(self, optimizer: torch.optim.Optimizer, max_grad_norm: float) -> float:
        with self.processes.waiting():
            _sum_gradients([p for group in optimizer.param_groups for p in group["params"]])
            return super().update(optimizer, max_grad_norm)

    def _mesh(self) -> Any:
        return init_device_mesh(self.device.partition(":")[0], (self.processes.size,))


def _sum_gradients(parameters: Sequence[Tensor]) -> None:
    """Replace each gradient by its sum over all processes. Sharded gradients are sums already."""
    whole = [p for p in parameters if not hasattr(p, "full_tensor")]
    if not whole:
        return
    # A process without an answer has no gradient. A parameter that no process used keeps none, as in a single process.
    used = torch.tensor([p.grad is not None for p in whole], dtype=torch.int32)
    dist.all_reduce(used)
    for p, count in zip(whole, used.tolist(), strict=True):
        if count and p.grad is None:
            p.grad = torch.zeros_like(p)
    for bucket in _buckets([p.grad for p in whole if p.grad is not None]):
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
        dist.all_reduce(flat)
        for gradient, total in zip(bucket, torch.split(flat, [g.numel() for g in bucket]), strict=True):
            gradient.copy_(total.view_as(gradient))


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Consecutive gradients of one type, at most BUCKET_BYTES together unless one alone is larger."""
    bucket: list[Tensor] = []
    for gradient in gradients:
        if bucket and (
            bucket[0].dtype != gradient.dtype or sum(g.nbytes for g in bucket) + gradient.nbytes > BUCKET_BYTES
        ):
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket


def _fingerprint(module: nn.Module) -> list[tuple[str, int]]:
    """Each weight and buffer by name with the sum of its bits, read as integers: exact, and in any order."""
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return [
        (name, int(value.detach().contiguous().view(integers[value.itemsize]).sum(dtype=torch.int64)))
        for name, value in module.state_dict().items()
    ]
