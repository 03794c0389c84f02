"""One process, one device; and the model that is trained there."""

from __future__ import annotations

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
    """The model whose parameters are trained, and what depends on where they lie. Here: the student itself, whole."""

    model: LanguageModel

    def backward(self, passes: Sequence[Callable[[], Tensor]]) -> None:
        """Add the gradient of every pass's loss; a pass is one forward, made when it is called."""
        for loss in passes:
            loss().backward()  # type: ignore[no-untyped-call]

    def publish(self) -> None:
        """Give the weights as they are now to the student that decodes and is saved."""

    def moments(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The optimizer's state, whole: the same however many processes share it."""
        return optimizer.state_dict()

    def load_moments(self, optimizer: torch.optim.Optimizer, moments: Mapping[str, Any]) -> None:
        """Give an optimizer the state that `moments` returned."""
        optimizer.load_state_dict(dict(moments))


@dataclass(frozen=True)
class LocalRuntime:
    """Runs everything here; what concerns several processes is the identity.

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
        """There is no other process."""
        return True

    @property
    def is_first(self) -> bool:
        """This process writes the run's files and speaks for all."""
        return True

    def share(self, count: int) -> slice:
        """Which of `count` things are this process's to do: neighbours, as many as any other's give or take one."""
        return slice(0, count)

    def all_sum(self, value: float) -> float:
        """The sum over all processes."""
        return value

    def gather(self, items: list[T]) -> list[T]:
        """Everybody's items, those of the first process first."""
        return items

    def from_first(self, find: Callable[[], T]) -> T:
        """What the first process finds, or raises, everywhere; the others do not look."""
        return find()

    def agree(self, problem: TutelageError | None) -> TutelageError | None:
        """Wait for all processes; why one of them cannot go on, or None if all can."""
        return problem

    def check_equal(self, what: str, value: object) -> None:
        """Refuse a run whose processes do not have the same."""

    def tell_stop(self, reason: str) -> None:
        """Let the others know that this process was asked to stop. May be called by a signal handler."""

    @property
    def stop_asked(self) -> str | None:
        """Why another process was asked to stop."""
        return None

    def begin_run(self, ring: Callable[[], None]) -> None:
        """Have `ring` called, on another thread, when another process is asked to stop this run, or is gone."""

    def end_run(self) -> None:
        """Call nobody any more."""

    @property
    def reads_teacher_together(self) -> bool:
        """The teacher's forwards need all processes at once, so none may leave in the middle of one."""
        return False

    def learner(self, student: LanguageModel) -> Learner:
        """Prepare the student for training."""
        return Learner(student)

    def placed_teacher(self, load: Callable[[str], LanguageModel]) -> LanguageModel:
        """The teacher, which learns nothing, where it is to be read. `load`: device -> model."""
        return load(self.device)

    def update(self, optimizer: torch.optim.Optimizer, max_grad_norm: float) -> float:
        """Clip the gradients, step, clear them; returns the gradient norm before clipping.

        Raises:
          NonFiniteError: the norm is NaN or infinite, and the parameters are left as they were; or the parameters or
            the optimizer's moments are after the step.
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
        """Look at what learns and at the optimizer's moments, in all processes.

        Raises:
          NonFiniteError: some are NaN or infinite, here or elsewhere, so that no process goes on.
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
    """What may be spread over processes, whole; all of them must ask."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value
