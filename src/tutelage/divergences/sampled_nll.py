"""The loss of supervised fine-tuning: imitate the answers themselves, not the distribution behind them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from tutelage.distributions import entropy, kl_divergence
from tutelage.divergences.base import Divergence
from tutelage.types import SampledTokens

__all__ = ["SampledNLL"]


@dataclass(frozen=True)
class SampledNLL(Divergence):
    """-log p(a_t) of the sampled token a_t, whoever sampled it.

    Under the teacher policy this is the SFT warm-up of TRB's comparison (arXiv 2605.31159) and the sequence-level KD of
    SKD's (arXiv 2410.11325): its mean over the teacher's tokens is KL(q || p) + H(q), so its gradient is that of the
    forward KL, with the noise of one sample per prefix. On the student's own tokens the mean gradient is 0.

    It looks through no support and at no target, so it has none of the other divergences' fields.
    """

    needs_rollouts: ClassVar[bool] = True
    imitates_tokens: ClassVar[bool] = True
    is_zero_at_equality: ClassVar[bool] = False

    support: str = field(default="student_top_k", init=False, repr=False)
    top_k: int = field(default=1, init=False, repr=False)
    rest: str = field(default="tail", init=False, repr=False)

    def between(self, student_logprobs: Tensor, target_logprobs: Tensor) -> Tensor:
        """What the loss is on average over tokens drawn from the target: the cross-entropy."""
        return kl_divergence(target_logprobs, student_logprobs) + entropy(target_logprobs)

    def on_sampled(self, sampled: SampledTokens, student_logprobs: Tensor, target_logprobs: Tensor) -> Tensor:
        return -sampled.logprobs
