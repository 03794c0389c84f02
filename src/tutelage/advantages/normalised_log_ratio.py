"""The teacher as a reward, less its mean over many tokens, over its deviation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage.advantages.base import Advantage
from tutelage.advantages.groups import group_deviations, group_means, on_tokens
from tutelage.errors import ConfigurationError
from tutelage.types import Batch, Fact

__all__ = ["NormalisedLogRatio"]

SCOPES = ("prompt", "batch")
LEAST_DEVIATION = 1e-6


@dataclass(frozen=True)
class NormalisedLogRatio(Advantage):
    """A = (R - mean R) / std R,   R_t = r_t + mean_{s > t} r_s,   r = log target(a) - log p(a)     (TOP-D, 2607.04751)

    Everything is taken at the rollout. With the target "proximal" r is at least log(1 - w), which is TOP-D's reward.
    Mean and sample deviation are over all tokens of the scope, so a long answer weighs more; one token alone has A = 0.
    What is divided by its deviation has lost its sign: about half the tokens are pushed up, also where the target finds
    all of them less probable than the student does.

    NeMo-RL's "proximal teacher" is future = false, over = "batch", divide = false.

    Fields:
      future: add the mean of what follows in the answer; False = R is r.
      over: whose tokens are pooled, "prompt" (all answers to it) or "batch".
      divide: by the deviation; False = the mean is subtracted, and no more.
    """

    future: bool = True
    over: str = "prompt"
    divide: bool = True

    def __post_init__(self) -> None:
        if self.over not in SCOPES:
            raise ConfigurationError(f"advantage.over is {self.over!r}; expected one of {', '.join(SCOPES)}.")

    @property
    def needs(self) -> frozenset[Fact]:
        return frozenset({Fact.student_token, Fact.teacher_token})

    def __call__(self, batch: Batch, target_logprobs_N: Tensor) -> Tensor:
        returns_N = (target_logprobs_N - batch.joined("student.logprobs_T")).double()
        if self.future:
            returns_N = torch.cat([_with_future(rewards_T) for rewards_T in torch.split(returns_N, batch.lengths)])
        pools_B = batch.prompts_B if self.over == "prompt" else torch.zeros_like(batch.prompts_B)
        pools_N = on_tokens(pools_B, batch)
        centred_N = returns_N - group_means(returns_N, pools_N)
        if self.divide:
            centred_N = centred_N / group_deviations(returns_N, pools_N).clamp_min(LEAST_DEVIATION)
        return centred_N.to(target_logprobs_N.dtype)


def _with_future(rewards_T: Tensor) -> Tensor:
    """r_t + mean_{s > t} r_s; the last token has nothing to come."""
    rest_T = rewards_T.flip(0).cumsum(0).flip(0) - rewards_T
    left_T = torch.arange(len(rewards_T) - 1, -1, -1)
    return rewards_T + torch.where(left_T > 0, rest_T / left_T.clamp_min(1), 0)
