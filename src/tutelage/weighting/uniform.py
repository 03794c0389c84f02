"""Every token counts the same: a mean over all response tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tutelage.types import Batch
from tutelage.weighting.base import Weighting

__all__ = ["UNIFORM", "Uniform"]


@dataclass(frozen=True)
class Uniform(Weighting):
    """w = 1."""

    asks_models: ClassVar[bool] = False

    def __call__(self, batch: Batch, uniforms_N: Tensor | None = None) -> Tensor:
        return torch.ones(batch.num_tokens)


UNIFORM = Uniform()
