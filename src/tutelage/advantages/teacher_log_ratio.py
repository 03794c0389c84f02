"""The teacher as a reward: how much more probable a sampled token is to it than to the student."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage.advantages.base import Advantage
from tutelage.errors import ConfigurationError, check_inside
from tutelage.types import Batch, Fact

__all__ = ["TeacherLogRatio"]


@dataclass(frozen=True)
class TeacherLogRatio(Advantage):
    """A_t = Σ_{s >= t} g^(s - t) r_s - baseline,   r = log target(a) - log p(a)     (MiniLLM, arXiv 2306.08543)

    Everything is taken at the rollout.

    Fields:
      discount: g in [0, 1]; 0 credits each token with its own reward only.
      leave_one_out: the baseline is the mean advantage of the tokens of the prompt's other answers; False = there is
        none.
    """

    discount: float = 0.0
    leave_one_out: bool = False

    def __post_init__(self) -> None:
        check_inside(self.discount, "advantage.discount", 0 <= self.discount <= 1, "a share from 0 to 1")

    @property
    def needs(self) -> frozenset[Fact]:
        return frozenset({Fact.student_token, Fact.teacher_token} | ({Fact.group} if self.leave_one_out else set()))

    @property
    def min_samples_per_prompt(self) -> int:
        return 2 if self.leave_one_out else 1

    def __call__(self, batch: Batch, target_logprobs_N: Tensor) -> Tensor:
        advantages_N = (target_logprobs_N - batch.joined("student.logprobs_T")).double()
        if self.discount > 0:
            advantages_N = torch.cat(
                [self._returns(rewards_T) for rewards_T in torch.split(advantages_N, batch.lengths)]
            )
        if self.leave_one_out:
            advantages_N = advantages_N - _mean_of_others(batch, advantages_N)
        return advantages_N.to(target_logprobs_N.dtype)

    def _returns(self, rewards_T: Tensor) -> Tensor:
        returns, later = [], 0.0
        for reward in reversed(rewards_T.tolist()):
            later = reward + self.discount * later
            returns.append(later)
        return torch.tensor(returns[::-1], dtype=rewards_T.dtype)


def _mean_of_others(batch: Batch, advantages_N: Tensor) -> Tensor:
    """Mean advantage per token over the other answers to the same prompt, [N]."""
    prompts_B = torch.tensor([rollout.prompt_index for rollout in batch.rollouts])
    lengths_B = torch.tensor(batch.lengths)
    sums_B = torch.stack([part.sum() for part in torch.split(advantages_N, batch.lengths)])
    size = int(prompts_B.max()) + 1
    other_sums_B = sums_B.new_zeros(size).index_add(0, prompts_B, sums_B)[prompts_B] - sums_B
    other_lengths_B = torch.bincount(prompts_B, lengths_B.double(), size)[prompts_B] - lengths_B
    if bool((other_lengths_B == 0).any()):
        raise ConfigurationError(
            "the advantage compares a prompt's answers with one another, but a prompt has one answer only. Set "
            "rollout.samples_per_prompt to at least 2, or use a baseline that needs none, such as "
            "divergence.baseline = 'expected'."
        )
    return (other_sums_B / other_lengths_B).repeat_interleave(lengths_B)
