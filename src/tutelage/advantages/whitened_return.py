"""Rewards at the end of answers, spread over their tokens and whitened over the batch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage.advantages.base import Advantage
from tutelage.advantages.groups import group_means, reward_named
from tutelage.advantages.returns import discounted_returns
from tutelage.errors import ConfigurationError, check_inside
from tutelage.types import Batch, Fact

__all__ = ["WhitenedReturn"]

BASELINES = ("none", "group_mean")


@dataclass(frozen=True)
class WhitenedReturn(Advantage):
    """A = (G - mean G) / (std G + epsilon) over all tokens of the batch            (REINFORCE++, arXiv 2501.03262)

    G_t = Σ_{s >= t} discount^(s - t) r_s. r is the answer's reward at its last token, less, at every token,
    kl_coefficient · (log p - log reference), the k1 estimate of the KL divergence from the reference. With the baseline
    "group_mean" the prompt's mean reward is subtracted before (the paper's variant with a baseline).

    Fields:
      discount: in [0, 1].
      baseline: "none" or "group_mean".
      kl_coefficient: at least 0; above 0 there must be a reference.
      epsilon: added to the standard deviation.
      reward: which reward.
    """

    discount: float = 1.0
    baseline: str = "none"
    kl_coefficient: float = 0.0
    epsilon: float = 1e-8
    reward: str = "reward"

    def __post_init__(self) -> None:
        check_inside(self.discount, "advantage.discount", 0 <= self.discount <= 1, "a share from 0 to 1")
        is_inside = 0 <= self.kl_coefficient < math.inf
        check_inside(self.kl_coefficient, "advantage.kl_coefficient", is_inside, "a finite number of at least 0")
        check_inside(self.epsilon, "advantage.epsilon", 0 <= self.epsilon < 1, "a small number of at least 0")
        if self.baseline not in BASELINES:
            raise ConfigurationError(
                f"advantage.baseline is {self.baseline!r}; expected one of {', '.join(BASELINES)}."
            )

    @property
    def needs(self) -> frozenset[Fact]:
        of_group = {Fact.group} if self.baseline == "group_mean" else set()
        of_reference = {Fact.reference, Fact.student_token} if self.kl_coefficient else set()
        return frozenset({Fact.reward} | of_group | of_reference)

    @property
    def rewards(self) -> frozenset[str]:
        return frozenset({self.reward})

    def consists_of(self, reward: str) -> bool:
        return super().consists_of(reward) and not self.kl_coefficient

    @property
    def min_samples_per_prompt(self) -> int:
        return 2 if self.baseline == "group_mean" else 1

    def __call__(self, batch: Batch, target_logprobs_N: Tensor) -> Tensor:
        rewards_B = reward_named(batch, self.reward)
        if self.baseline == "group_mean":
            rewards_B = rewards_B - group_means(rewards_B, batch.prompts_B)
        rewards_N = torch.zeros(batch.num_tokens, dtype=torch.float64)
        if self.kl_coefficient:
            drift_N = batch.joined("student.logprobs_T") - batch.joined("reference.logprobs_T")
            rewards_N -= self.kl_coefficient * drift_N.double()
        lengths_B = torch.tensor(batch.lengths)
        has_tokens_B = lengths_B > 0
        rewards_N[lengths_B.cumsum(0)[has_tokens_B] - 1] += rewards_B[has_tokens_B]
        returns_N = discounted_returns(rewards_N, batch.lengths, self.discount)
        centred_N = returns_N - returns_N.mean()
        deviation = centred_N.std() if len(centred_N) > 1 else centred_N.new_zeros(())
        # Where all returns are equal there is nothing to tell tokens apart by.
        whitened_N = centred_N / (deviation + self.epsilon) if float(deviation) > 0 else torch.zeros_like(centred_N)
        return whitened_N.to(target_logprobs_N.dtype)
