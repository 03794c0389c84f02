"""Learn from the tokens at which the student is unsure or wrong, and leave the others out."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage.errors import ConfigurationError, check_inside
from tutelage.types import Batch, Fact
from tutelage.weighting.base import Weighting, recorded_kl

__all__ = ["Tip"]

SELECTORS = ("soft_or", "entropy", "q3")

# Entropies above this quantile of the batch count as equal, so that few outliers do not flatten all others.
CLIP_QUANTILE = 0.98


@dataclass(frozen=True)
class Tip(Weighting):
    """1 for the max(1, floor(share · N)) highest scores of the batch, 0 for the rest     (TIP, arXiv 2604.14084)

    With h the student's entropy, d the reverse and f the forward KL of a token (`recorded_kl`), and h', d' scaled to
    [0, 1] over the batch, h clipped at its 98th percentile before:

      soft_or   1 - (1 - h')(1 - d')      unsure or wrong
      entropy   h                         unsure
      q3        f (1 - h')                sure and wrong

    A quantity that is the same everywhere is scaled to 0. Of equal scores the earlier token is kept.

    Fields:
      selector: one of the three.
      share: rho in (0, 1]; 1 keeps everything.
    """

    selector: str = "soft_or"
    share: float = 0.5

    def __post_init__(self) -> None:
        check_inside(self.share, "weighting.share", 0 < self.share <= 1, "a share above 0, at most 1")
        if self.selector not in SELECTORS:
            raise ConfigurationError(
                f"weighting.selector is {self.selector!r}; expected one of {', '.join(SELECTORS)}."
            )

    @property
    def needs(self) -> frozenset[Fact]:
        return frozenset({Fact.student_support} | ({Fact.teacher_support} if self.selector != "entropy" else set()))

    def __call__(self, batch: Batch, uniforms_N: Tensor | None = None) -> Tensor:
        scores_N = self.scores(batch)
        num_kept = max(1, math.floor(self.share * len(scores_N) + 1e-9))  # 0.29 · 100 is 28.999...
        kept_K = scores_N.argsort(descending=True, stable=True)[:num_kept]
        return torch.zeros(len(scores_N)).index_fill(0, kept_K, 1.0)

    def scores(self, batch: Batch) -> Tensor:
        """How much each token deserves to be kept, [N]."""
        entropy_N = batch.joined("student.entropy_T").double()
        if self.selector == "entropy":
            return entropy_N
        quantile = entropy_N.kthvalue(1 + int(CLIP_QUANTILE * (len(entropy_N) - 1))).values
        unsure_N = _scaled(entropy_N.clamp_max(quantile))
        if self.selector == "q3":
            return recorded_kl(batch, reverse=False) * (1 - unsure_N)
        return 1 - (1 - unsure_N) * (1 - _scaled(recorded_kl(batch, reverse=True)))


def _scaled(values_N: Tensor) -> Tensor:
    """From 0 at the smallest to 1 at the largest; 0 where all are equal."""
    lowest, span = values_N.min(), values_N.max() - values_N.min()
    return (values_N - lowest) / span if span > 0 else torch.zeros_like(values_N)
