"""The clipped surrogates: PPO's, with the ratio of a token or of a whole answer, or with the teacher in the ratio.

Notation: D = log p now - log p at the rollout, w = exp(D), A the advantage.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage.advantages import GROUP_REWARD, Advantage
from tutelage.errors import ConfigurationError, check_inside
from tutelage.losses.base import TokenFacts
from tutelage.losses.tokens.corrected import CorrectedTokenLoss
from tutelage.types import Fact

__all__ = ["AnchoredSurrogate", "ClippedSurrogate", "log_ratio", "ratio_statistics"]

MAX_LOG_RATIO = 20.0  # nats; beyond it exp would leave float32, and every clip is active anyway (verl has the same)


def log_ratio(logprobs_n: Tensor, anchor_n: Tensor) -> Tensor:
    """log p - anchor in nats, within +-20, with the gradient of log p inside; 0 where both rule the token out."""
    is_ruled_out_n, by_anchor_n = logprobs_n == -math.inf, anchor_n == -math.inf
    has_both_n = ~(is_ruled_out_n | by_anchor_n)
    difference_n = torch.where(has_both_n, logprobs_n, 0) - torch.where(has_both_n, anchor_n, 0)
    ends_n = MAX_LOG_RATIO * (by_anchor_n.to(anchor_n.dtype) - is_ruled_out_n.to(anchor_n.dtype))
    return torch.where(has_both_n, difference_n.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO), ends_n)


def ratio_statistics(ratios_n: Tensor, facts: TokenFacts) -> dict[str, Tensor]:
    """Of a term with a ratio: w itself, and exp(mean of D over the answer)."""
    assert facts.answer_log_ratios is not None
    of_answers_n = facts.answer_log_ratios.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    return {
        "ratio_min": ratios_n,
        "ratio_max": ratios_n,
        "sequence_ratio_min": of_answers_n,
        "sequence_ratio_max": of_answers_n,
    }


@dataclass(frozen=True)
class ClippedSurrogate(CorrectedTokenLoss):
    """-min(w A, clip(w, 1 - low, 1 + high) A); for A < 0 at most -dual_clip · A

    low = high = 0.2 is PPO (arXiv 1707.06347) and GRPO; high = 0.28 with the token mean DAPO (arXiv 2503.14476). With
    one update per batch w is 1, nothing is clipped, and this is the policy gradient. `ratio = "sequence"` is GSPO
    (arXiv 2507.18071): w = exp(mean of D over the answer) for all its tokens, with narrower bounds (about 3e-4 and 4e-4
    in the paper); its gradient reaches each token as that of its own log p.

    Fields:
      epsilon_low, epsilon_high: how far w may fall and rise before its gradient ends.
      dual_clip: c > 1, bounds the loss of a token with A < 0 whose probability has risen (verl's `clip_ratio_c` = 3,
        TRL's `delta`); inf = no bound.
      ratio: "token" or "sequence".
      advantage: A.
      correction, ...: see `CorrectedTokenLoss`.
    """

    advantage: Advantage = GROUP_REWARD
    epsilon_low: float = 0.2
    epsilon_high: float = 0.2
    dual_clip: float = math.inf
    ratio: str = "token"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_inside(self.epsilon_low, "loss.epsilon_low", 0 <= self.epsilon_low <= 1, "a number from 0 to 1")
        is_inside = 0 <= self.epsilon_high < math.inf
        check_inside(self.epsilon_high, "loss.epsilon_high", is_inside, "a finite number of at least 0")
        check_inside(self.dual_clip, "loss.dual_clip", self.dual_clip > 1, "a number above 1")
        if self.ratio not in ("token", "sequence"):
            raise ConfigurationError(f"loss.ratio is {self.ratio!r}; expected 'token' or 'sequence'.")

    @property
    def needs(self) -> frozenset[Fact]:
        return super().needs | {Fact.student_token}

    @property
    def asks_answer_ratio(self) -> bool:
        return self.ratio == "sequence"

    def log_ratios(self, logprobs_n: Tensor, facts: TokenFacts) -> Tensor:
        """log w, with its gradient."""
        if self.ratio == "token":
            return log_ratio(logprobs_n, facts.student_logprobs)
        assert facts.answer_log_ratios is not None
        return log_ratio(logprobs_n, logprobs_n.detach()) + facts.answer_log_ratios

    def on_tokens(self, logprobs_n: Tensor, facts: TokenFacts) -> Tensor:
        advantages_n, ratios_n = facts.advantages, self.log_ratios(logprobs_n, facts).exp()
        clipped_n = ratios_n.clamp(1 - self.epsilon_low, 1 + self.epsilon_high)
        values_n = -torch.minimum(ratios_n * advantages_n, clipped_n * advantages_n)
        if self.dual_clip == math.inf:
            return values_n
        return torch.where(advantages_n < 0, values_n.minimum(-self.dual_clip * advantages_n), values_n)

    def statistics(self, logprobs_n: Tensor, facts: TokenFacts) -> dict[str, Tensor]:
        """Which tokens have no gradient, since w has gone as far as it may in the direction of the advantage."""
        advantages_n, ratios_n = facts.advantages, self.log_ratios(logprobs_n, facts).exp()
        return {
            "clip_share_high": (advantages_n > 0) & (ratios_n > 1 + self.epsilon_high),
            "clip_share_low": (advantages_n < 0) & (ratios_n < 1 - self.epsilon_low),
            **(
                {}
                if self.dual_clip == math.inf
                else {"clip_share_dual": (advantages_n < 0) & (ratios_n > self.dual_clip)}
            ),
            **ratio_statistics(ratios_n, facts),
        }


@dataclass(frozen=True)
class AnchoredSurrogate(ClippedSurrogate):
    """The clipped surrogate with w = p / (p_old^a target^(1 - a))      (RLAD's TRRD, arXiv 2602.22495)

    log w = a (log p - log p_old) + (1 - a) clamp(log p - log target, -m, m). The teacher stands inside the ratio, so it
    is imitated only in the direction and as far as the advantage supports. At a = 1 this is `ClippedSurrogate`; the
    paper's text has the two ends the other way round, its formula does not. Already at the first update w is not 1: a
    token with A > 0 that the student finds more probable than the teacher does may be clipped. Where the clamp holds,
    no gradient flows through its part, as with torch's clamp; the paper does not say.

    Fields:
      own_share: a in [0, 1].
      max_teacher_log_ratio: m in nats.
      the others: see `ClippedSurrogate`.
    """

    epsilon_high: float = 0.28
    own_share: float = 0.5
    max_teacher_log_ratio: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_inside(self.own_share, "loss.own_share", 0 <= self.own_share <= 1, "a share from 0 to 1")
        is_inside = self.max_teacher_log_ratio > 0
        check_inside(self.max_teacher_log_ratio, "loss.max_teacher_log_ratio", is_inside, "nats above 0")

    @property
    def needs(self) -> frozenset[Fact]:
        return super().needs | {Fact.teacher_token}

    def log_ratios(self, logprobs_n: Tensor, facts: TokenFacts) -> Tensor:
        bound = self.max_teacher_log_ratio
        to_teacher_n = log_ratio(logprobs_n, facts.target_logprobs).clamp(-bound, bound)
        return self.own_share * super().log_ratios(logprobs_n, facts) + (1 - self.own_share) * to_teacher_n
