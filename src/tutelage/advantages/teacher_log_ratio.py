"""The teacher as a reward: how much more probable a sampled token is to it than to the student."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage.advantages.base import Advantage
from tutelage.advantages.groups import group_sums, on_tokens, reward_named
from tutelage.advantages.returns import discounted_returns
from tutelage.errors import ConfigurationError, check_inside
from tutelage.types import Batch, Fact

__all__ = ["TeacherLogRatio"]

ANSWERS = ("all", "wrong", "failed_groups")


@dataclass(frozen=True)
class TeacherLogRatio(Advantage):
    """A_t = Σ_{s >= t} g^(s - t) r_s - baseline,   r = log target(a) - log p(a)     (MiniLLM, arXiv 2306.08543)

    Everything is taken at the rollout. Of answers that it leaves out, A is 0: KDRL's masks (arXiv 2506.02208).

    Fields:
      discount: g in [0, 1]; 0 credits each token with its own reward only.
      leave_one_out: the baseline is the mean advantage of the tokens of the prompt's other answers; False = there is
        none.
      answers: which ones it is for; "all", "wrong" (the reward is 0 or less), or "failed_groups" (no answer to the
        prompt has a reward above 0).
      reward: which reward says that.
    """

    discount: float = 0.0
    leave_one_out: bool = False
    answers: str = "all"
    reward: str = "correct"

    def __post_init__(self) -> None:
        check_inside(self.discount, "advantage.discount", 0 <= self.discount <= 1, "a share from 0 to 1")
        if self.answers not in ANSWERS:
            raise ConfigurationError(f"advantage.answers is {self.answers!r}; expected one of {', '.join(ANSWERS)}.")

    @property
    def needs(self) -> frozenset[Fact]:
        of_group = {Fact.group} if self.leave_one_out else set()
        of_rewards = set() if self.answers == "all" else {Fact.reward}
        return frozenset({Fact.student_token, Fact.teacher_token} | of_group | of_rewards)

    @property
    def rewards(self) -> frozenset[str]:
        return frozenset() if self.answers == "all" else frozenset({self.reward})

    def consists_of(self, reward: str) -> bool:
        return False  # a reward says at most where the teacher is asked

    @property
    def min_samples_per_prompt(self) -> int:
        return 2 if self.leave_one_out else 1

    def __call__(self, batch: Batch, target_logprobs_N: Tensor) -> Tensor:
        advantages_N = (target_logprobs_N - batch.joined("student.logprobs_T")).double()
        if self.discount > 0:
            advantages_N = discounted_returns(advantages_N, batch.lengths, self.discount)
        if self.leave_one_out:
            advantages_N = advantages_N - _mean_of_others(batch, advantages_N)
        if self.answers != "all":
            is_right_B = (reward_named(batch, self.reward) > 0).double()
            left_out_B = is_right_B if self.answers == "wrong" else group_sums(is_right_B, batch.prompts_B)
            advantages_N = advantages_N.masked_fill(on_tokens(left_out_B, batch) > 0, 0)
        return advantages_N.to(target_logprobs_N.dtype)


def _mean_of_others(batch: Batch, advantages_N: Tensor) -> Tensor:
    """Mean advantage per token over the other answers to the same prompt, [N]."""
    lengths_B = torch.tensor(batch.lengths).double()
    sums_B = torch.stack([part.sum() for part in torch.split(advantages_N, batch.lengths)])
    other_lengths_B = group_sums(lengths_B, batch.prompts_B) - lengths_B
    if bool((other_lengths_B == 0).any()):
        raise ConfigurationError(
            "the advantage compares a prompt's answers with one another, but a prompt has one answer only. Set "
            "rollout.samples_per_prompt to at least 2, or use a baseline that needs none, such as "
            "divergence.baseline = 'expected'."
        )
    return on_tokens((group_sums(sums_B, batch.prompts_B) - sums_B) / other_lengths_B, batch)
