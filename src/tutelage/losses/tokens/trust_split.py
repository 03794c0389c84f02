"""Trust a sampled token as far as the teacher does; learn the teacher's favourites where it does not."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage.advantages import TeacherLogRatio
from tutelage.distributions import kl_divergence, normalise
from tutelage.errors import ConfigurationError, check_inside
from tutelage.losses.base import TokenFacts
from tutelage.losses.tokens.windowed import WindowedTokenLoss, reweighed, score_term
from tutelage.types import Fact

__all__ = ["TrustSplit"]

ACCEPTANCES = ("sampled", "expected")
OUTLIERS = ("forward_kl", "scalar")


@dataclass(frozen=True)
class TrustSplit(WindowedTokenLoss):
    """M (sampled reverse KL) + (1 - M) (outlier's loss),   M ~ Bernoulli(min(1, q(a) / p(a)))     (TrOPD, 2606.01249)

    q is the target. The paper's formula and its reported code differ at the tokens that are not trusted. We do not know
    which of them gave the published numbers, so both are here. A token that the teacher alone drew, as in its
    prefix of an answer, has no part in the split: it is imitated weakly, w (log q - log p), which is the paper's term.

    Both halves of the split carry the same ratio min(p / mu, cap). The paper knows tokens of the student and of the
    teacher only; where a blend of both drew them, their mean is thus the one under the student, as far as the cap goes.

    The weighting "tropd" is the first half alone, for any divergence: what is not trusted is left out.

    Fields:
      support, top_k, rest: of the outlier's loss; the paper has the teacher's 64, q neither renormalised nor completed.
      acceptance: "sampled" draws M from the token's own random number; "expected" puts its mean in its place.
      outliers: "forward_kl": sum_v q (log q - log p) with its gradient, the paper's formula. "scalar": the same number,
        q renormalised on the support, as a detached penalty on the sampled token, as the code is reported to do.
      ratio_cap: see `SampledReverseKL`.
      prefix_weight: w, beta_1 of the paper; 0 learns nothing from the teacher's own tokens.
    """

    support: str = "teacher_top_k"
    top_k: int = 64
    rest: str = "truncated"
    acceptance: str = "sampled"
    outliers: str = "forward_kl"
    ratio_cap: float = 5.0
    prefix_weight: float = 0.001

    def __post_init__(self) -> None:
        super().__post_init__()
        check_inside(self.ratio_cap, "divergence.ratio_cap", self.ratio_cap > 0, "a ratio above 0")
        is_inside = 0 <= self.prefix_weight < math.inf
        check_inside(self.prefix_weight, "divergence.prefix_weight", is_inside, "a finite number of at least 0")
        for name, known in (("acceptance", ACCEPTANCES), ("outliers", OUTLIERS)):
            if getattr(self, name) not in known:
                raise ConfigurationError(
                    f"divergence.{name} is {getattr(self, name)!r}; expected one of {', '.join(known)}."
                )

    @property
    def advantage(self) -> TeacherLogRatio:
        return TeacherLogRatio()

    @property
    def needs(self) -> frozenset[Fact]:
        return super().needs | {Fact.behaviour_token}

    def on_tokens(self, logprobs_n: Tensor, facts: TokenFacts) -> Tensor:
        advantages_n, (student, target) = facts.advantages, facts.events
        trust_n = advantages_n.clamp_max(0).exp()
        if self.acceptance == "sampled":
            trust_n = (facts.uniforms < trust_n).to(trust_n.dtype)
        trusted_n = score_term(logprobs_n, advantages_n) - advantages_n
        if self.outliers == "forward_kl":
            untrusted_n = kl_divergence(target, student)
        else:
            is_void_n = (target == -math.inf).all(-1)  # no mass there: no distance, and nothing to penalise
            known = normalise(target.masked_fill(is_void_n[..., None], 0))
            distances_n = kl_divergence(known, student).detach().masked_fill(is_void_n, 0)
            untrusted_n = distances_n + score_term(logprobs_n, -distances_n)
        # A share of 0 must also silence what is infinite.
        split_n = torch.where(trust_n > 0, trust_n * trusted_n, 0) + torch.where(
            trust_n < 1, (1 - trust_n) * untrusted_n, 0
        )
        split_n = reweighed(facts, split_n, self.ratio_cap)
        if self.prefix_weight == 0:
            return split_n.masked_fill(facts.is_teachers, 0)
        imitated_n = self.prefix_weight * (advantages_n + score_term(logprobs_n, torch.ones_like(advantages_n)))
        return torch.where(facts.is_teachers, imitated_n, split_n)
