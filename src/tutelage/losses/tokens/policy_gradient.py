"""Plain policy gradient: REINFORCE with any advantage."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tutelage.advantages import GROUP_REWARD, Advantage
from tutelage.losses.base import TokenFacts
from tutelage.losses.tokens.corrected import CorrectedTokenLoss
from tutelage.losses.tokens.windowed import score_term

__all__ = ["PolicyGradient"]


@dataclass(frozen=True)
class PolicyGradient(CorrectedTokenLoss):
    """-A, with the gradient -A grad log p(a).

    Under the student, with an advantage whose baseline does not depend on the token, its mean gradient is that of minus
    the expected reward. There is no ratio to the student at the rollout, so it is for one update per batch.

    Fields:
      advantage: A.
      correction, ...: see `CorrectedTokenLoss`.
    """

    advantage: Advantage = GROUP_REWARD

    def on_tokens(self, logprobs_n: Tensor, facts: TokenFacts) -> Tensor:
        return score_term(logprobs_n, facts.advantages) - facts.advantages
