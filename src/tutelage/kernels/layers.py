"""Which of a layer's small operations are kernels? On CUDA with Triton, those of a forward without a gradient."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from tutelage.kernels.sampler import has_kernels

__all__ = ["layer_kernels"]

TYPES = (torch.bfloat16, torch.float16, torch.float32)


def layer_kernels(states: Tensor) -> ModuleType | None:
    """The kernels for these states, see `triton_layers`; None where the plain form computes.

    A gradient needs what the plain form keeps, and float64 asks for more than kernels sum in.
    """
    # The cheapest question comes first: on a CPU it is asked for each small operation of every step.
    if not states.is_cuda or torch.is_grad_enabled() or states.dtype not in TYPES or not has_kernels(states.device):
        return None
    from tutelage.kernels import triton_layers

    return triton_layers
