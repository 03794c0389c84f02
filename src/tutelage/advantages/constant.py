"""Every sampled token is worth the same, or what the student's entropy at its place says; no teacher is asked."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage.advantages.base import Advantage
from tutelage.errors import ConfigurationError, check_inside
from tutelage.types import Batch, Fact

__all__ = ["Constant", "ConstantByEntropy"]


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


@dataclass(frozen=True)
class ConstantByEntropy(Advantage):
    """A = value - spread r / 4,   r = 2 (H - H_min) / (H_max - H_min) - 1       (OPSA, arXiv 2608.31046)

    H is the student's entropy at the token's place, at the rollout. From value + spread/4 at the most certain place to
    value - spread/4 at the least certain one, where with a value below 0 most is unlearned. Like a constant it needs
    the weighting "token_share", and has the mean gradient 0 without it. The extremes are those of the tokens that this
    chooses; whether the paper takes them of an answer or of the batch it does not say: here of the batch. r = 0 where
    all their entropies are equal. Tokens that are not chosen get what the formula gives, and do not count.

    Fields:
      value: in the middle.
      spread: at least 0; twice the distance between the two ends.
    """

    value: float = -0.75
    spread: float = 1.0

    def __post_init__(self) -> None:
        check_inside(self.value, "advantage.value", math.isfinite(self.value), "a finite number")
        check_inside(self.spread, "advantage.spread", 0 <= self.spread < math.inf, "a finite number of at least 0")

    @property
    def needs(self) -> frozenset[Fact]:
        return frozenset({Fact.teacher_drawn, Fact.student_support})

    def __call__(self, batch: Batch, target_logprobs_N: Tensor) -> Tensor:
        entropy_N = batch.joined("student.entropy_T").to(target_logprobs_N)
        counting_n = entropy_N if batch.weights_N is None else entropy_N[batch.weights_N > 0]
        if not len(counting_n) or counting_n.min() == counting_n.max():
            return torch.full_like(target_logprobs_N, self.value)
        least, most = counting_n.aminmax()
        rank_N = 2 * (entropy_N - least) / (most - least) - 1
        return self.value - self.spread * rank_N / 4
