"""An answer's reward, less what the prompt's answers get in the mean."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage.advantages.base import Advantage
from tutelage.advantages.groups import group_deviations, group_means, group_sizes, on_tokens, reward_named
from tutelage.errors import ConfigurationError, check_inside
from tutelage.types import Batch, Fact

__all__ = ["GROUP_REWARD", "GroupReward"]

BASELINES = ("group_mean", "leave_one_out", "none")
SCALES = ("group", "batch", "none")


@dataclass(frozen=True)
class GroupReward(Advantage):
    """A_i = (R_i - b_i) / (s_i + epsilon), the same for every token of answer i.

    | method | baseline b | scale s |
    |---|---|---|
    | GRPO (arXiv 2402.03300) | mean of the prompt's rewards | their standard deviation |
    | Dr. GRPO (arXiv 2503.20783) | the same | "none": 1 |
    | RLOO (arXiv 2402.14740) | "leave_one_out": mean of the prompt's other rewards | "none" |
    | TRL's `scale_rewards = "batch"` | the prompt's mean | standard deviation of the whole batch's rewards |

    Standard deviations are those of a sample (divided by n - 1), as in TRL and verl. Where all answers to a prompt have
    the same reward, A is 0, whatever the scale. A batch is what one optimizer step sees.

    Fields:
      baseline: "group_mean", "leave_one_out" or "none".
      scale: "group", "batch" or "none".
      epsilon: added to the standard deviation; TRL has 1e-4, verl 1e-6.
      reward: which reward; "reward" is all of the run's together.
    """

    baseline: str = "group_mean"
    scale: str = "group"
    epsilon: float = 1e-4
    reward: str = "reward"

    def __post_init__(self) -> None:
        for name, known in (("baseline", BASELINES), ("scale", SCALES)):
            if getattr(self, name) not in known:
                raise ConfigurationError(
                    f"advantage.{name} is {getattr(self, name)!r}; expected one of {', '.join(known)}."
                )
        check_inside(self.epsilon, "advantage.epsilon", 0 <= self.epsilon < 1, "a small number of at least 0")

    @property
    def needs(self) -> frozenset[Fact]:
        return frozenset({Fact.reward} | ({Fact.group} if self.min_samples_per_prompt > 1 else set()))

    @property
    def rewards(self) -> frozenset[str]:
        return frozenset({self.reward})

    @property
    def min_samples_per_prompt(self) -> int:
        return 1 if self.baseline == "none" and self.scale != "group" else 2

    def __call__(self, batch: Batch, target_logprobs_N: Tensor) -> Tensor:
        rewards_B, groups_B = reward_named(batch, self.reward), batch.prompts_B
        centred_B = rewards_B - group_means(rewards_B, groups_B)
        if self.baseline == "leave_one_out":  # R_i less the mean of the others
            sizes_B = group_sizes(groups_B)
            values_B = centred_B * sizes_B / (sizes_B - 1).clamp_min(1)
        else:
            values_B = centred_B if self.baseline == "group_mean" else rewards_B
        if self.scale == "group":
            values_B = _divided(values_B, group_deviations(rewards_B, groups_B) + self.epsilon)
        elif self.scale == "batch":
            deviation = rewards_B.std() if len(rewards_B) > 1 else torch.zeros(())
            values_B = _divided(values_B, (deviation + self.epsilon).expand_as(values_B))
        return on_tokens(values_B, batch).to(target_logprobs_N.dtype)


GROUP_REWARD = GroupReward()  # as GRPO has it


def _divided(values_B: Tensor, scales_B: Tensor) -> Tensor:
    """Where nothing varies, a scale without epsilon is 0; 0 / 0 is then 0."""
    return torch.where(scales_B > 0, values_B / scales_B.clamp_min(torch.finfo(values_B.dtype).tiny), 0)
