"""Reverse KL everywhere, and forward KL on top where the target itself is undecided."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from tutelage.distributions import entropy, kl_divergence, normalise
from tutelage.errors import ConfigurationError, check_inside
from tutelage.losses.base import DistributionLoss

__all__ = ["EntropyAware"]


@dataclass(frozen=True)
class EntropyAware(DistributionLoss):
    """KL(student || target) + weight · 1[H(target) > threshold] · sum_S q' (log q' - log p)     (EOPD, 2603.07079)

    S are the target's most probable events, q' the target renormalised on S, p the student as it is (eq. 10). The last
    sum is KL(q' || p on S) - log p(S): it also draws the student's mass into S, so it is 0 only where S is everything.
    The paper takes its first term from the sampled token with a clipped ratio; here it is the exact sum. It averages
    over the tokens of an answer and then over answers; here, as everywhere, all tokens of a batch count the same.

    Entropy and S are those of the support's events. Both are exact with `support = "full"`, the default here. On a
    top-k the tail is one event, which makes the entropy too low: the gate opens less often.

    Fields:
      entropy_threshold: nats, tau of the paper; inf leaves the reverse KL, a number below 0 opens the gate everywhere.
      forward_weight: alpha.
      forward_top_k: events in S.
    """

    support: str = "full"
    entropy_threshold: float = 0.8
    forward_weight: float = 1.0
    forward_top_k: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        is_inside = 0 <= self.forward_weight < math.inf
        check_inside(self.forward_weight, "divergence.forward_weight", is_inside, "a finite number of at least 0")
        check_inside(self.forward_top_k, "divergence.forward_top_k", self.forward_top_k >= 1, "at least 1 event")
        if math.isnan(self.entropy_threshold):
            raise ConfigurationError("divergence.entropy_threshold is nan; expected nats. Use 0.8.")

    def between(self, student_logprobs: Tensor, target_logprobs: Tensor) -> Tensor:
        reverse = kl_divergence(student_logprobs, target_logprobs)
        if self.forward_weight == 0:  # 0 · inf
            return reverse
        is_open = entropy(target_logprobs) > self.entropy_threshold
        top = target_logprobs.topk(min(self.forward_top_k, target_logprobs.shape[-1]), dim=-1)
        # A target without mass on the support has no q'; the reverse KL is infinite there.
        is_void = (top.values == -math.inf).all(-1)
        most_probable = normalise(top.values.masked_fill(is_void[..., None], 0))
        forward = kl_divergence(most_probable, student_logprobs.gather(-1, top.indices))
        return reverse + self.forward_weight * forward.masked_fill(~is_open | is_void, 0)
