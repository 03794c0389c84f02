"""What a weighting is: from the records of a whole batch to one number per token."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tutelage.distributions import kl_divergence
from tutelage.types import Batch, Fact

__all__ = ["Weighting", "recorded_kl"]

# Less than this is lost when a mass is computed as 1 minus float32 probabilities.
MIN_TAIL = 2.0**-24
# No more than this comes of rounding where a support has all the mass.
MAX_EMPTY_TAIL = 1e-5


@dataclass(frozen=True)
class Weighting(ABC):
    """How much each response token counts: the loss is sum w D / sum w over the global batch.

    It sees the batch as it was recorded, before the first micro-batch, so a ranking is one over the whole batch and no
    gradient can flow into a weight.

    Class fields that a member may override:
      is_random: it needs the tokens' random numbers.
      needs: what must be known of the tokens beside their places.
    """

    is_random: ClassVar[bool] = False

    @property
    def needs(self) -> frozenset[Fact]:
        return frozenset()

    @property
    def looks_at_token(self) -> bool:
        """The weight depends on which token was drawn, and not on what stands before it alone.

        Then a constant advantage teaches something also on the student's own tokens.
        """
        return False

    @abstractmethod
    def __call__(self, batch: Batch, uniforms_N: Tensor | None = None) -> Tensor:
        """Weights of the batch's N tokens.

        Args:
          batch: the whole one.
          uniforms_N: float64 in [0, 1), a random number that belongs to each token; None unless `is_random`.
        Returns:
          weights_N, 0 or more, on the CPU.
        """


def recorded_kl(batch: Batch, *, reverse: bool, finite: bool = True) -> Tensor:
    """KL(student || teacher), or KL(teacher || student) if not `reverse`, of each token, from its records.

    Taken on the recorded support and its tail: at most the full KL. The student's tail is 1 minus its mass, known to
    about 1e-7 and never below 6e-8; good enough to rank tokens with. Where the teacher has none, one of up to 1e-5 is
    taken for rounding, as of a support that is the whole vocabulary, and a larger one is infinitely far from it.

    Args:
      finite: an infinite one becomes the largest of the others, or 1 where these are all 0.
    Returns:
      [N] nats, float64, not below 0.
    """
    student_NK = batch.joined("student.support_logprobs_TK").double()
    teacher_NK = batch.joined("teacher.support_logprobs_TK").double()
    teacher_tail_N = batch.joined("teacher.tail_logprobs_T").double()
    rest_N = 1 - student_NK.exp().sum(-1)
    is_whole_N = (teacher_tail_N == -math.inf) & (rest_N <= MAX_EMPTY_TAIL)
    student_tail_N = rest_N.clamp_min(MIN_TAIL).log().masked_fill(is_whole_N, -math.inf)
    student_NE = torch.cat([student_NK, student_tail_N[:, None]], dim=-1)
    teacher_NE = torch.cat([teacher_NK, teacher_tail_N[:, None]], dim=-1)
    kl_N = kl_divergence(student_NE, teacher_NE) if reverse else kl_divergence(teacher_NE, student_NE)
    return finite_kl(kl_N) if finite else kl_N.clamp_min(0)


def finite_kl(kl_N: Tensor) -> Tensor:
    """KL of each token, not below 0; an infinite one becomes the largest of the others, or 1 where these are all 0."""
    is_finite_N = kl_N.isfinite()
    kl_N = kl_N.clamp_min(0)
    largest = float(kl_N[is_finite_N].max()) if bool(is_finite_N.any()) else 0.0
    return kl_N.masked_fill(~is_finite_N, largest or 1.0)
