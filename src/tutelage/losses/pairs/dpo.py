"""Direct preference optimisation against a fixed reference."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import logsigmoid

from tutelage.errors import ConfigurationError
from tutelage.losses.base import PairFacts, PairLoss
from tutelage.types import Fact

__all__ = ["DPO"]


@dataclass(frozen=True)
class DPO(PairLoss):
    """-log σ(β [(log p(y_w) - log r(y_w)) - (log p(y_l) - log r(y_l))])     (DPO, arXiv 2305.18290, eq. 7)

    y_w and y_l are the preferred and the rejected answer, p the student, r the reference; log-probabilities are summed
    over the tokens of an answer. At p = r the loss is log 2, whatever β.

    Fields:
      beta: β of the paper, above 0: how strongly the student is held to the reference.
    """

    beta: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.beta < math.inf:
            raise ConfigurationError(f"loss.beta is {self.beta:g}; expected a finite number above 0. Use 0.1.")

    @property
    def needs(self) -> frozenset[Fact]:
        return super().needs | {Fact.reference}

    def on_pairs(self, preferred_P: Tensor, rejected_P: Tensor, facts: PairFacts) -> Tensor:
        preferred_ratio_P = preferred_P - facts.preferred_reference_P
        rejected_ratio_P = rejected_P - facts.rejected_reference_P
        return -logsigmoid(self.beta * (preferred_ratio_P - rejected_ratio_P))
