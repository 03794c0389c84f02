"""One process, one device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage.errors import ConfigurationError, NonFiniteError

__all__ = ["LocalRuntime"]


@dataclass(frozen=True)
class LocalRuntime:
    """Runs everything here; sums over processes are the identity.

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

    def all_sum(self, value: float) -> float:
        """The sum over all processes."""
        return value

    def update(self, optimizer: torch.optim.Optimizer, max_grad_norm: float) -> float:
        """Clip the gradients, step, clear them; returns the gradient norm before clipping.

        Raises:
          NonFiniteError: the norm is NaN or infinite; the parameters are left as they were.
        """
        parameters: list[Tensor] = [
            p for group in optimizer.param_groups for p in group["params"] if p.grad is not None
        ]
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm))
        if not torch.isfinite(torch.tensor(norm)):
            optimizer.zero_grad(set_to_none=True)
            raise NonFiniteError(f"the gradient norm is {norm}")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return norm
