"""Early tokens count more: they decide which prefixes come after them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from tutelage.errors import check_inside
from tutelage.types import Batch
from tutelage.weighting.base import Weighting

__all__ = ["PositionDecay"]


@dataclass(frozen=True)
class PositionDecay(Weighting):
    """w = 2^(-t / half_life) at the answer's token t = 0, 1, ...

    Fields:
      half_life: tokens after which a weight has halved; inf is uniform.
    """

    half_life: float = 1024.0

    def __post_init__(self) -> None:
        check_inside(self.half_life, "weighting.half_life", self.half_life > 0, "a number of tokens above 0")

    def __call__(self, batch: Batch, uniforms_N: Tensor | None = None) -> Tensor:
        return (batch.positions_N * (-math.log(2) / self.half_life)).exp()
