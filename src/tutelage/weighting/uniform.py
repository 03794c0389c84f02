"""Every token counts the same: a mean over all response tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage.types import Batch
from tutelage.weighting.base import Weighting

__all__ = ["UNIFORM", "Uniform"]


@dataclass(frozen=True)
class Uniform(Weighting):
    """w = 1."""

    def __call__(self, batch: Batch, uniforms_N: Tensor | None = None) -> Tensor:
        return torch.ones(batch.num_tokens)


UNIFORM = Uniform()
