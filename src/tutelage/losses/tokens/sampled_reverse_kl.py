"""Reverse KL from the sampled token alone, as a policy gradient with the teacher as reward."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tutelage.advantages import TeacherLogRatio
from tutelage.distributions import kl_divergence
from tutelage.errors import ConfigurationError, check_inside
from tutelage.losses.base import TokenFacts, check_share
from tutelage.losses.support import Support
from tutelage.losses.tokens.windowed import WindowedTokenLoss, reweighed, score_term
from tutelage.types import Fact

__all__ = ["SampledReverseKL"]

BASELINES = ("none", "expected", "leave_one_out")


@dataclass(frozen=True)
class SampledReverseKL(WindowedTokenLoss):
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
        events, minus their reverse KL, exact at the prefix; "leave_one_out": the mean advantage of the tokens of the
        prompt's other answers.
      ratio_cap: largest importance ratio, detached; inf = none. Of no effect under the student policy.
      support, top_k, rest: for the baseline "expected" only.
    """

    discount: float = 0.0
    baseline: str = "none"
    ratio_cap: float = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share(self.discount, "divergence.discount")
        check_inside(self.ratio_cap, "divergence.ratio_cap", self.ratio_cap > 0, "a ratio above 0")
        if self.baseline not in BASELINES:
            raise ConfigurationError(
                f"divergence.baseline is {self.baseline!r}; expected one of {', '.join(BASELINES)}."
            )

    @property
    def advantage(self) -> TeacherLogRatio:
        return TeacherLogRatio(self.discount, leave_one_out=self.baseline == "leave_one_out")

    @property
    def window(self) -> Support | None:
        return super().window if self.baseline == "expected" else None

    @property
    def needs(self) -> frozenset[Fact]:
        return super().needs | {Fact.behaviour_token}

    def on_tokens(self, logprobs_n: Tensor, facts: TokenFacts) -> Tensor:
        advantages_n = facts.advantages
        if self.baseline == "expected":
            advantages_n = advantages_n + kl_divergence(*facts.events).detach()
        estimates_n = facts.student_logprobs - facts.target_logprobs
        return reweighed(facts, estimates_n + score_term(logprobs_n, advantages_n), self.ratio_cap)
