"""Optimal transport between a group of the student's distributions and a group of the target's."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage.distributions import kl_divergence, temper
from tutelage.errors import ConfigurationError, check_inside
from tutelage.losses.base import DistributionLoss

__all__ = ["Sinkhorn"]


@dataclass(frozen=True)
class Sinkhorn(DistributionLoss):
    """forward_weight · KL(target || student) + transport_weight · sum_j P_ij W_ij for token i     (SinKD, 2402.17110)

    W_ij = sum_v |p_i(v) - q_j(v)| at temperature t; P is exp(-W / epsilon), rows and then columns rescaled to 1, again
    and again. Gradients pass through P. The paper's batch are the vectors of a mini-batch; for a language model it is
    our choice: `group_tokens` neighbouring tokens of one answer, the last group of an answer being shorter. So neither
    micro-batches nor chunks change the loss. Transport alone ignores which student token belongs to which target, hence
    the forward KL beside it. It is not 0 for equal groups, since epsilon blurs the plan.

    Events must be the same tokens at every position, so only the whole vocabulary will do.

    Fields:
      transport_weight, forward_weight: of the two terms. The paper's code has 0.001 for the first, where it multiplies
        the sum over a batch; here the loss is a mean over tokens, so its 0.001 on b vectors is 0.001 b here.
      group_tokens: b; the cost grows with b V per token.
      temperature, epsilon, iterations: 2, 0.1 and 20 in the paper's code.
    """

    support: str = "full"
    transport_weight: float = 0.001
    forward_weight: float = 1.0
    group_tokens: int = 64
    temperature: float = 2.0
    epsilon: float = 0.1
    iterations: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.support != "full":
            raise ConfigurationError(
                f"divergence.support is {self.support!r}, but sinkhorn compares distributions at different tokens of "
                "an answer, whose top-k are different words. Use divergence.support = 'full'."
            )
        for name in ("transport_weight", "forward_weight"):
            value = getattr(self, name)
            check_inside(value, f"divergence.{name}", 0 <= value < math.inf, "a finite number of at least 0")
        for name in ("temperature", "epsilon"):
            value = getattr(self, name)
            check_inside(value, f"divergence.{name}", 0 < value < math.inf, "a finite number above 0")
        check_inside(self.group_tokens, "divergence.group_tokens", self.group_tokens >= 1, "at least 1")
        # It has long converged at the upper bound; beyond it a step would seem to hang.
        check_inside(self.iterations, "divergence.iterations", 1 <= self.iterations <= 10_000, "from 1 to 10,000")

    @property
    def tokens_per_group(self) -> int | None:
        return self.group_tokens

    def between(self, student_logprobs: Tensor, target_logprobs: Tensor) -> Tensor:
        student, target = (temper(each, self.temperature).exp() for each in (student_logprobs, target_logprobs))
        if student.dim() == 1:  # a single token is a group of one
            transport = self._transport(student[None], target[None])[0]
        else:
            groups = (torch.split(each, self.group_tokens, dim=-2) for each in (student, target))
            transport = torch.cat([self._transport(*group) for group in zip(*groups, strict=True)], dim=-1)
        transport = self.transport_weight * transport
        if not self.forward_weight:  # 0 · inf
            return transport
        return transport + self.forward_weight * kl_divergence(target_logprobs, student_logprobs)

    def _transport(self, student_bV: Tensor, target_bV: Tensor) -> Tensor:
        """sum_j P_ij W_ij of each row i of a group: [..., b, V] twice -> [..., b]."""
        cost_bb = torch.cdist(student_bV, target_bV, p=1.0)
        log_plan_bb = -cost_bb / self.epsilon  # in logs: a small epsilon would leave rows without any mass
        for _ in range(self.iterations):
            log_plan_bb = log_plan_bb - log_plan_bb.logsumexp(-1, keepdim=True)
            log_plan_bb = log_plan_bb - log_plan_bb.logsumexp(-2, keepdim=True)
        return (log_plan_bb.exp() * cost_bb).sum(-1)
