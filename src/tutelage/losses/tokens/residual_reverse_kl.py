"""Reverse KL, exact on a support; what lies outside is corrected by the sampled token."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage.errors import ConfigurationError, check_inside
from tutelage.losses.base import TokenFacts
from tutelage.losses.tokens.windowed import WindowedTokenLoss, reweighed, score_term
from tutelage.types import Fact

__all__ = ["ResidualReverseKL"]

TAILS = ("residual", "sampled")
LEAST_TAIL = -25.0  # nats; a tail, or a token of it, of less mass counts as this, so that its log-ratio stays finite


@dataclass(frozen=True)
class ResidualReverseKL(WindowedTokenLoss):
    """Σ_S p r + tau_p r_tail + 1[a outside S] (r(a) - r_tail),   r = log p - log target     (ResOPD, arXiv 2610.04882)

    tau_p and tau_q are the models' masses outside the support S, r_tail = log tau_p - log tau_q. The first two terms
    are `reverse_kl` with its tail as one event, whose gradient is biased, since the tail is more than one token. The
    last one adds, of an answer's own token where it lies in the tail, what one event misses:

        gradient = Σ_S p r ∇log p + tau_p r_tail ∇log tau_p + 1[a outside S] (r(a) ∇log p(a) - r_tail ∇log tau_p)

    Its mean over tokens of the student is that of the reverse KL over the whole vocabulary, for any S that does not
    depend on the token, and its value's mean is the reverse KL; one token's value may be negative. Coefficients are
    detached. The tails, and a token of theirs, count as e^-25 at least; the metric "target_floor_share" says of how
    many tokens the target has less. With tail = "sampled" (HETS in the same paper) r_tail is 0: exact on S, the tail by
    the token alone, also without bias. Where another policy drew, the last term carries min(p / mu, cap), as in
    `SampledReverseKL`.

    Fields:
      support, top_k: S; the paper has the teacher's 4 most probable tokens.
      rest: "tail"; nothing else has one.
      tail: "residual" or "sampled".
      ratio_cap: largest importance ratio, detached.
    """

    support: str = "teacher_top_k"
    top_k: int = 4
    tail: str = "residual"
    ratio_cap: float = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_inside(self.ratio_cap, "divergence.ratio_cap", self.ratio_cap > 0, "a ratio above 0")
        if self.tail not in TAILS:
            raise ConfigurationError(f"divergence.tail is {self.tail!r}; expected one of {', '.join(TAILS)}.")
        if self.support == "full" or self.rest != "tail":
            key, value = ("support", self.support) if self.support == "full" else ("rest", self.rest)
            raise ConfigurationError(
                f"divergence.{key} is {value!r}, which leaves no tail to correct. Use 'reverse_kl', or a support such "
                "as 'teacher_top_k' with rest = 'tail'."
            )

    @property
    def needs(self) -> frozenset[Fact]:
        return super().needs | {Fact.student_token, Fact.teacher_token, Fact.behaviour_token}

    @property
    def asks_inside(self) -> bool:
        return True

    def statistics(self, logprobs_n: Tensor, facts: TokenFacts) -> dict[str, Tensor]:
        return {"target_floor_share": (facts.target_logprobs < LEAST_TAIL).to(logprobs_n.dtype)}

    def on_tokens(self, logprobs_n: Tensor, facts: TokenFacts) -> Tensor:
        student_nE, target_nE = facts.events
        assert facts.is_inside is not None
        now_nE, known_nE = student_nE.detach(), target_nE.detach()
        tail_n = now_nE[..., -1].clamp_min(LEAST_TAIL) - known_nE[..., -1].clamp_min(LEAST_TAIL)
        if self.tail == "sampled":
            tail_n = torch.zeros_like(tail_n)
        ratios_nE = torch.cat([now_nE[..., :-1] - known_nE[..., :-1], tail_n[..., None]], dim=-1)
        # An event that the student never has does not count, whatever the target says of it.
        shares_nE = torch.where(now_nE > -math.inf, now_nE.exp() * ratios_nE, 0)
        exact_n = (shares_nE + score_term(student_nE, -shares_nE)).sum(-1)
        estimates_n = facts.student_logprobs.clamp_min(LEAST_TAIL) - facts.target_logprobs.clamp_min(LEAST_TAIL)
        missed_n = estimates_n - tail_n
        missed_n = missed_n + score_term(logprobs_n, -estimates_n) - score_term(student_nE[..., -1], -tail_n)
        missed_n = missed_n.masked_fill(facts.is_inside, 0)
        return exact_n + reweighed(facts, missed_n, self.ratio_cap)
