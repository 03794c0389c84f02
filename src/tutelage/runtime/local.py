"""One process on one device, and the model that is trained there."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from tutelage.errors import ConfigurationError, NonFiniteError, TutelageError
from tutelage.models import LanguageModel, is_all_finite

__all__ = ["Learner", "LocalRuntime"]

T = TypeVar("T")


@dataclass(frozen=True)
class Learner:
    """The model whose parameters are trained, and what depends on where they lie. Here it is the whole student."""

    model: LanguageModel

    def backward(self, passes: Sequence[Callable[[], Tensor]]) -> None:
        """Add the gradients of the losses that `passes` return; calling a pass runs one forward."""
        for loss in passes:
            loss().backward()  # type: ignore[no-untyped-call]

    def publish(self) -> None:
        """Copy the present weights to the student that decodes and is saved, where that is another model."""

    def moments(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The optimizer's whole state, the same for any number of processes."""
        moments = optimizer.state_dict()
        # A phase may teach some parameters first. The file's bytes must not depend on that: neither on the order of
        # first updates, nor on which names were read from a checkpoint, since equal strings are pickled once each.
        moments["state"] = {
            place: {sys.intern(name): value for name, value in own.items()}
            for place, own in sorted(moments["state"].items())
        }
        return moments

    def load_moments(self, optimizer: torch.optim.Optimizer, moments: Mapping[str, Any]) -> None:
        """Load the state that `moments` returned into an optimizer."""
        optimizer.load_state_dict(dict(moments))


@dataclass(frozen=True)
class LocalRuntime:
    """Runs everything in this process. Exchanges with other processes are the identity.

    Fields:
      device: "auto" picks CUDA, then Apple's MPS, then the CPU.
    """

    device: str = "auto"

    def __post_init__(self) -> None:
        if self.device == "auto":
            best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
            object.__setattr__(self, "device", best)
        kind = self.device.split(":")[0]
        if kind not in ("cpu", "cuda", "mps"):
            raise ConfigurationError(f"runtime.device is {self.device!r}; expected auto, cpu, cuda, cuda:N or mps.")
        if kind == "cuda" and not torch.cuda.is_available():
            raise ConfigurationError("runtime.device is 'cuda', but no CUDA device is visible. Use 'auto' or 'cpu'.")

    @property
    def is_alone(self) -> bool:
        """Whether there is no other process."""
        return True

    @property
    def is_first(self) -> bool:
        """Whether this process writes the run's files and displays its progress."""
        return True

    def share(self, count: int) -> slice:
        """Which of `count` things this process does. They are consecutive, and shares differ in size by at most one."""
        return slice(0, count)

    def all_sum(self, value: float) -> float:
        """The sum over all processes."""
        return value

    def gather(self, items: list[T]) -> list[T]:
        """The items of all processes, in the order of the processes."""
        return items

    def from_first(self, find: Callable[[], T]) -> T:
        """Return in all processes what `find` returns in the first one, or raise what it raises there."""
        return find()

    def agree(self, problem: TutelageError | None) -> TutelageError | None:
        """Wait for all processes. Returns why one of them cannot go on, or None if all can."""
        return problem

    def check_equal(self, what: str, value: object) -> None:
        """Refuse the run unless all processes have the same value."""

    def request_stop(self, reason: str) -> None:
        """Ask the other processes to stop this run. May be called by a signal handler."""

    @property
    def stop_reason(self) -> str | None:
        """Why the processes were asked to stop this run, if one was."""
        return None

    def begin_run(self, on_stop_request: Callable[[], None]) -> None:
        """Begin a run. Another thread calls `on_stop_request` when a process is asked to stop the run, or is lost."""

    def end_run(self) -> None:
        """Call `on_stop_request` no more."""

    @property
    def reads_teacher_together(self) -> bool:
        """Whether the teacher's forwards need all processes at once, so that none may leave in the middle of one."""
        return False

    def learner(self, student: LanguageModel) -> Learner:
        """Prepare the student for training."""
        return Learner(student)

    def placed_teacher(self, load: Callable[[str], LanguageModel]) -> LanguageModel:
        """Load the teacher, which is not trained, onto its device. `load`: device -> model."""
        return load(self.device)

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Replace each gradient by its sum over all processes; sharded gradients are sums already."""

    def update(self, optimizer: torch.optim.Optimizer, max_grad_norm: float) -> float:
        """Clip the gradients, make the optimizer's step, clear the gradients.

        Returns:
          The gradient norm before clipping.
        Raises:
          NonFiniteError: the norm is NaN or infinite, and the parameters stay as they were; or the parameters or the
            optimizer's moments are NaN or infinite after the step.
        """
        parameters: list[Tensor] = [
            p for group in optimizer.param_groups for p in group["params"] if p.grad is not None
        ]
        norm = float(gathered(torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)))
        if not torch.isfinite(torch.tensor(norm)):
            optimizer.zero_grad(set_to_none=True)
            raise NonFiniteError(f"the gradient norm is {norm}")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self.check_finite(optimizer)
        return norm

    def check_finite(self, optimizer: torch.optim.Optimizer) -> None:
        """Check the trained weights and the optimizer's moments in all processes.

        Raises:
          NonFiniteError: in all processes, if some are NaN or infinite in one of them.
        """
        weights = [p for group in optimizer.param_groups for p in group["params"]]
        moments = [
            value
            for state in optimizer.state.values()
            for value in state.values()
            if isinstance(value, Tensor) and value.dim()
        ]
        if self.all_sum(float(not is_all_finite([*weights, *moments]))):
            raise NonFiniteError("after the update, weights or the optimizer's moments are NaN or infinite")


def gathered(value: Any) -> Any:
    """The whole of a tensor that may be sharded; all processes must call this."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value
