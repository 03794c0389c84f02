"""Token losses on answers that the student did not draw itself, or drew in another program, as if it had.

The ratio of the student at the rollout to what drew the token, p / mu = exp(d), puts the mean under mu right. It has
outliers, so it is cut. TRB's blend and vLLM's rounding are corrected in the same way, since a rollout has log mu of
each token, whoever drew it. Where the student drew it here, every weight is exactly 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tutelage.errors import ConfigurationError, check_inside
from tutelage.losses.base import TokenLoss
from tutelage.types import Batch, Fact

__all__ = ["CORRECTIONS", "CorrectedTokenLoss", "correction_weights"]

CORRECTIONS = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask", "none")


@dataclass(frozen=True)
class CorrectedTokenLoss(TokenLoss):
    """A token loss whose tokens count p / mu times, cut.

    | correction | weight | elsewhere |
    |---|---|---|
    | token_truncate | min(e^d, cap) | TRL `token_truncate`, verl `rollout_is = "token"`; the default |
    | token_mask | e^d if floor <= e^d <= cap, else 0 | TRL `token_mask`; with a floor IcePop |
    | sequence_truncate | min(e^Σd, cap), Σ over the answer | TRL, verl `sequence` |
    | sequence_mask | e^Σd if floor <= e^Σd <= cap, else 0 | TRL `sequence_mask` |
    | none | 1 | |

    A ratio per token leaves out that the prefix was drawn by mu, too, so it is biased under another policy, as every
    truncation is; Σd has no such bias and grows with the length.

    Fields:
      correction, correction_cap, correction_floor: above.
    """

    correction: str = field(default="token_truncate", kw_only=True)
    correction_cap: float = field(default=2.0, kw_only=True)
    correction_floor: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.correction not in CORRECTIONS:
            raise ConfigurationError(
                f"loss.correction is {self.correction!r}; expected one of {', '.join(CORRECTIONS)}."
            )
        check_inside(self.correction_cap, "loss.correction_cap", self.correction_cap > 0, "a ratio above 0")
        is_inside = 0 <= self.correction_floor <= self.correction_cap
        check_inside(self.correction_floor, "loss.correction_floor", is_inside, "a ratio from 0 to loss.correction_cap")
        if self.correction_floor > 0 and not self.correction.endswith("_mask"):
            raise ConfigurationError(
                f"loss.correction_floor is {self.correction_floor:g}, but loss.correction = {self.correction!r} has no "
                "floor. Use 'token_mask' or 'sequence_mask', or drop it."
            )

    @property
    def needs(self) -> frozenset[Fact]:
        corrected = set() if self.correction == "none" else {Fact.behaviour_token, Fact.student_token}
        return super().needs | corrected

    def factors(self, batch: Batch, weights_N: Tensor) -> Tensor | None:
        factors_N = super().factors(batch, weights_N)
        if self.correction == "none":
            return factors_N
        weights_N = correction_weights(batch, self.correction, self.correction_cap, self.correction_floor)
        return weights_N if factors_N is None else weights_N * factors_N

    def batch_statistics(self, batch: Batch) -> dict[str, float]:
        """How many weights were cut, and the effective sample size (Σ w)² / (N Σ w²) of what was left, over tokens.

        The size is 1 where all weights are equal, 1 / N where one token has them all, and 0 where there are none.
        """
        if self.correction == "none":
            return {}
        ratios_N = correction_weights(batch, self.correction, math.inf)
        weights_N = correction_weights(batch, self.correction, self.correction_cap, self.correction_floor)
        square = float((weights_N**2).sum())
        size = float(weights_N.sum()) ** 2 / (len(weights_N) * square) if square else 0.0
        return {
            "correction_cut_share": float((weights_N != ratios_N).double().mean()),
            "correction_effective_share": size,
        }


def correction_weights(batch: Batch, correction: str, cap: float, floor: float = 0.0) -> Tensor:
    """The weight of each token, [N], in float64; see `CorrectedTokenLoss`."""
    student_N, behaviour_N = batch.joined("student.logprobs_T"), batch.joined("behaviour_logprobs")
    drift_N = student_N.double() - behaviour_N.double()
    if correction.startswith("sequence"):
        sums_B = torch.stack([drift.sum() for drift in torch.split(drift_N, batch.lengths)])
        drift_N = sums_B.repeat_interleave(torch.tensor(batch.lengths))
    if correction.endswith("truncate"):
        return drift_N.clamp_max(math.log(cap)).exp()
    ratios_N = drift_N.exp()
    return ratios_N.masked_fill((ratios_N > cap) | (ratios_N < floor), 0)
