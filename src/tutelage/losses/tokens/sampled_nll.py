"""The loss of supervised fine-tuning: imitate the answers themselves, not the distribution that they came from."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tutelage.advantages import Advantage, Constant
from tutelage.losses.base import TokenFacts, TokenLoss

__all__ = ["SampledNLL"]

IMITATION = Constant()


@dataclass(frozen=True)
class SampledNLL(TokenLoss):
    """-A log p(a) of the sampled token a, whoever sampled it; A is 1 by default.

    Under the teacher policy this is the SFT warm-up of TRB's comparison (arXiv 2605.31159) and the sequence-level KD of
    SKD's (arXiv 2410.11325): its mean over the teacher's tokens is KL(q || p) + H(q), so its gradient is that of the
    forward KL, with the noise of one sample per prefix. On the student's own tokens the mean gradient is 0. With
    another advantage it is the plain policy gradient of that advantage (REINFORCE), without a ratio.

    Fields:
      advantage: A.
    """

    advantage: Advantage = IMITATION

    def on_tokens(self, logprobs_n: Tensor, facts: TokenFacts) -> Tensor:
        return -facts.advantages * logprobs_n
