"""Every sampled token is worth the same: imitate what was drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage.advantages.base import Advantage
from tutelage.errors import ConfigurationError
from tutelage.types import Batch, Fact

__all__ = ["Constant"]


@dataclass(frozen=True)
class Constant(Advantage):
    """A = value for every token. On tokens that the student drew alone the mean gradient of A log p is 0.

    That is so while all of them count. The weighting "token_share" chooses rare ones, and a value below 0 then sharpens
    the student (arXiv 2608.31046); one above 0 would raise its own mistakes.

    Fields:
      value: the advantage; below 0 the tokens are unlearned.
    """

    value: float = 1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise ConfigurationError(f"advantage.value is {self.value}; expected a finite number. Use 1 to imitate.")

    @property
    def needs(self) -> frozenset[Fact]:
        return frozenset({Fact.teacher_drawn})

    def __call__(self, batch: Batch, target_logprobs_N: Tensor) -> Tensor:
        return torch.full_like(target_logprobs_N, self.value)
