"""Reverse KL from the sampled token alone, as a policy gradient with the teacher as reward."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage.distributions import kl_divergence
from tutelage.divergences.base import Divergence, check_inside, check_share
from tutelage.errors import ConfigurationError
from tutelage.types import Batch, SampledTokens

__all__ = ["SampledReverseKL", "reweighed", "score_term"]

BASELINES = ("none", "expected", "leave_one_out")


@dataclass(frozen=True)
class SampledReverseKL(Divergence):
    """min(p / mu, cap) · (log p(a) - log target(a)), with the gradient of a policy that is rewarded with minus that.

    loss_t = - ratio_t A_t log p(a_t),   A_t = sum_{s >= t} g^(s - t) r_s - baseline,   r = log target(a) - log p(a)

    This is the k1 reward of "Thinking Machines" style distillation, the single-step term of MiniLLM (arXiv 2306.08543).
    p in r and in the ratio is the student at the rollout; nothing but log p(a_t) has a gradient. Differentiating r
    itself, or a sum over a support that does not depend on a_t, would teach nothing: E_p[c grad log p] = 0.

    At g = 0 the expected gradient is that of reverse KL at each visited prefix, over the whole vocabulary, for any
    policy whose p / mu stays below the cap; above it the token counts less and the estimate is biased. At g = 1, under
    the student, it is the gradient of the reverse KL of whole answers. Under another policy g > 0 is an approximation:
    the ratio is that of the token, not of what follows.

    Fields:
      discount: g in [0, 1]; 0 credits each token with its own reward only.
      baseline: subtracted without changing the expected gradient. "none"; "expected": the mean of r over the support's
        events, minus their reverse KL, exact at the prefix; "leave_one_out": the mean credit over the tokens of the
        prompt's other answers.
      ratio_cap: largest importance ratio, detached; inf = none. Of no effect under the student policy.
      support, top_k, rest: for the baseline "expected" only.
    """

    needs_rollouts = True

    discount: float = 0.0
    baseline: str = "none"
    ratio_cap: float = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share(self.discount, "discount")
        check_inside(self.ratio_cap, "ratio_cap", self.ratio_cap > 0, "a ratio above 0")
        if self.baseline not in BASELINES:
            raise ConfigurationError(
                f"divergence.baseline is {self.baseline!r}; expected one of {', '.join(BASELINES)}."
            )

    @property
    def min_samples_per_prompt(self) -> int:
        return 2 if self.baseline == "leave_one_out" else 1

    def between(self, student_logprobs: Tensor, target_logprobs: Tensor) -> Tensor:
        return kl_divergence(student_logprobs, target_logprobs)

    def credits(self, batch: Batch, rewards_N: Tensor) -> Tensor:
        credits_N = rewards_N.double()
        if self.discount > 0:
            credits_N = torch.cat([self._returns(rewards_T) for rewards_T in torch.split(credits_N, batch.lengths)])
        if self.baseline == "leave_one_out":
            credits_N = credits_N - _mean_of_others(batch, credits_N)
        return credits_N.to(rewards_N.dtype)

    def on_sampled(self, sampled: SampledTokens, student_logprobs: Tensor, target_logprobs: Tensor) -> Tensor:
        advantages = sampled.credits
        if self.baseline == "expected":
            advantages = advantages + self.between(student_logprobs, target_logprobs).detach()
        estimates = sampled.student_logprobs - sampled.target_logprobs
        return reweighed(sampled, estimates + score_term(sampled, advantages), self.ratio_cap)

    def _returns(self, rewards_T: Tensor) -> Tensor:
        returns, later = [], 0.0
        for reward in reversed(rewards_T.tolist()):
            later = reward + self.discount * later
            returns.append(later)
        return torch.tensor(returns[::-1], dtype=rewards_T.dtype)


def reweighed(sampled: SampledTokens, values: Tensor, cap: float) -> Tensor:
    """min(p / mu, cap) · values: as if the student had drawn the tokens. The ratio has no gradient."""
    ratio = (sampled.student_logprobs - sampled.behaviour_logprobs).clamp_max(math.log(cap)).exp()
    # What the student never draws does not count, be it infinite.
    return ratio * values.masked_fill(ratio == 0, 0)


def score_term(sampled: SampledTokens, advantages: Tensor) -> Tensor:
    """A number that is 0 and whose gradient is - advantage · grad log p(a)."""
    # An infinite advantage shows in the loss that stands beside this term; here it would be inf · 0 = NaN.
    advantages = advantages.masked_fill(~advantages.isfinite(), 0).detach()
    logprobs = sampled.logprobs.masked_fill(sampled.logprobs == -math.inf, 0)
    return -advantages * (logprobs - logprobs.detach())


def _mean_of_others(batch: Batch, credits_N: Tensor) -> Tensor:
    """Mean credit per token over the other answers to the same prompt, [N]."""
    prompts_B = torch.tensor([rollout.prompt_index for rollout in batch.rollouts])
    lengths_B = torch.tensor(batch.lengths)
    sums_B = torch.stack([part.sum() for part in torch.split(credits_N, batch.lengths)])
    size = int(prompts_B.max()) + 1
    other_sums_B = sums_B.new_zeros(size).index_add(0, prompts_B, sums_B)[prompts_B] - sums_B
    other_lengths_B = torch.bincount(prompts_B, lengths_B.double(), size)[prompts_B] - lengths_B
    if bool((other_lengths_B == 0).any()):
        raise ConfigurationError(
            "divergence.baseline is 'leave_one_out', but a prompt has one answer only. Set rollout.samples_per_prompt "
            "to at least 2, or use divergence.baseline = 'expected'."
        )
    return (other_sums_B / other_lengths_B).repeat_interleave(lengths_B)
