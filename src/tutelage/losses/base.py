"""What a term of the objective is. Four kinds, told apart by what they compare.

    distribution   the student's next-token distribution with a target's, seen through a support      [n] per token
    token          log p of the sampled token with a number that is known for it, its advantage       [n] per token
    layer          what the student's linear layers give with what the teacher's give, same inputs    [N] per token
    pair           summed log p of a preferred and of a rejected answer                               [P] per pair

The objective is the sum of its terms, each times its coefficient: a weighted mean over the response tokens of the
global batch of the first three kinds, and a mean over its pairs of the fourth.

Axis letters: n tokens of a block, E events, P pairs; of layers M layers, N tokens, E width of the model.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, Self

from torch import Tensor

from tutelage.advantages import Advantage
from tutelage.errors import ConfigurationError, check_inside
from tutelage.losses.normalisers import check_normaliser, normaliser_factors
from tutelage.losses.support import Support, seen_through, support_named
from tutelage.schedules import Schedule, as_schedule, at_step, plain_number
from tutelage.types import Batch, Fact, Target

__all__ = [
    "DistributionLoss",
    "LayerLoss",
    "Loss",
    "PairFacts",
    "PairLoss",
    "TokenFacts",
    "TokenLoss",
    "check_share",
]


@dataclass(frozen=True)
class Loss(ABC):
    """A term of the objective.

    Fields:
      coefficient: what the term is multiplied with; a number or a schedule. At 0 the term is not computed.
    """

    coefficient: float | Schedule = field(default=1.0, kw_only=True, repr=False)

    def __post_init__(self) -> None:
        lowest, largest = as_schedule(self.coefficient, "loss.coefficient").bounds()
        if not (math.isfinite(lowest) and math.isfinite(largest)):
            raise ConfigurationError(
                f"loss.coefficient is {self.coefficient}; expected a finite number at every step. Use 1."
            )

    @property
    @abstractmethod
    def needs(self) -> frozenset[Fact]:
        """What must be known of a batch."""

    @property
    def factor(self) -> float:
        """The coefficient as a number."""
        return plain_number(self.coefficient, "loss.coefficient")

    def at(self, step: int) -> Self:
        """The term with its schedules resolved to the numbers of `step`."""
        return at_step(self, step)


@dataclass(frozen=True)
class DistributionLoss(Loss):
    """A distance between the student's distribution and a target's, seen through a support.

    A member writes `between`. What it may say of itself beside that:
      is_sum_over_events: it is a sum of terms that each look at one event, so it may be added up over parts of them.
      generalised_jsd_share: the `target_share` of the generalised Jensen-Shannon divergence that it is, reverse (1) and
        forward KL (0) among them; None if it is none. There are kernels for these.
      tokens_per_group: how many neighbouring tokens of an answer are compared together; None = each one by itself.

    Fields:
      support: "student_top_k", "teacher_top_k", "union_top_k" or "full".
      top_k: tokens in the support; of the union, tokens of each side.
      rest: what becomes of the others, see `losses.support`.
    """

    is_sum_over_events: ClassVar[bool] = False

    support: str = "student_top_k"
    top_k: int = 16
    rest: str = "tail"
    window: Support = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "window", support_named(self.support, self.top_k, self.rest))

    @property
    def needs(self) -> frozenset[Fact]:
        return frozenset({self.window.fact})

    @property
    def generalised_jsd_share(self) -> float | None:
        return None

    @property
    def tokens_per_group(self) -> int | None:
        return None

    @abstractmethod
    def between(self, student_logprobs: Tensor, target_logprobs: Tensor) -> Tensor:
        """The divergence of two distributions over the same events: [..., events] -> [...], in nats.

        Gradients flow into the student's; `TargetRule.is_constant` says whether the target has one.
        """

    def __call__(self, student_logits: Tensor, target: Tensor | Target) -> Tensor:
        """The divergence per token, [..., V] -> [...]. Gradients flow to the student only."""
        return self.between(*seen_through(self.window, student_logits, target))


@dataclass(frozen=True)
class TokenFacts:
    """What is known of n sampled tokens beside log p under the student that is updated; nothing here has a gradient
    but the student's events.

    Fields:
      student_logprobs, behaviour_logprobs: [n] log p and log mu at the rollout; NaN where nothing was recorded.
      target_logprobs: [n] log target at the rollout; NaN unless the term needs `Fact.teacher_token`.
      advantages: [n] see `advantages.Advantage`; NaN where the term has none.
      uniforms: [n] in [0, 1); a random number that belongs to the token.
      is_teachers: [n] bool, the teacher alone drew the token (the policy's blend is 1).
      student_events, target_events: [n, E] log-probabilities through the term's window; None if it has no window.
      reference_logprobs: [n] of the third model at the rollout; None unless the term needs `Fact.reference`.
      answer_log_ratios: [n] mean over the token's whole answer of log p now - log p at the rollout; None unless the
        term `asks_answer_ratio`, or its statistics are asked.
      is_inside: [n] bool, the token is an event of its own in the window, and not among the rest; None unless the term
        `asks_inside`.
    """

    student_logprobs: Tensor
    behaviour_logprobs: Tensor
    target_logprobs: Tensor
    advantages: Tensor
    uniforms: Tensor
    is_teachers: Tensor
    student_events: Tensor | None = None
    target_events: Tensor | None = None
    reference_logprobs: Tensor | None = None
    answer_log_ratios: Tensor | None = None
    is_inside: Tensor | None = None

    @property
    def events(self) -> tuple[Tensor, Tensor]:
        """Student's and target's log-probabilities on the events of the term's window, [n, E] each."""
        assert self.student_events is not None and self.target_events is not None, "the term has no window"
        return self.student_events, self.target_events


@dataclass(frozen=True)
class TokenLoss(Loss):
    """A number per sampled token, from its log p and its advantage.

    A member writes `on_tokens`. It may have an `advantage`, as a field or as a property, and a `window` if it looks at
    distributions as well.

    Fields:
      normaliser, normaliser_tokens: what it is averaged over, see `losses.normalisers`.
    """

    normaliser: str = field(default="token_mean", kw_only=True)
    normaliser_tokens: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_normaliser(self.normaliser, self.normaliser_tokens)

    @property
    def advantage(self) -> Advantage | None:
        """What a sampled token is worth; None = it does not ask."""
        return None

    @property
    def window(self) -> Support | None:
        """Through which distributions are looked at; None = they are not."""
        return None

    @property
    def needs(self) -> frozenset[Fact]:
        own = frozenset() if self.window is None else frozenset({self.window.fact})
        return own if self.advantage is None else own | self.advantage.needs

    @property
    def asks_answer_ratio(self) -> bool:
        """It looks at how far the student has moved over the whole answer that a token is in."""
        return False

    @property
    def asks_inside(self) -> bool:
        """It asks whether a sampled token is an event of its own in the window."""
        return False

    def factors(self, batch: Batch, weights_N: Tensor) -> Tensor | None:
        """What each token's value is multiplied with, [N], decided over the whole batch, or None for 1.

        Args:
          weights_N: of the weighting.
        """
        return normaliser_factors(self.normaliser, self.normaliser_tokens, batch, weights_N)

    def statistics(self, logprobs_n: Tensor, facts: TokenFacts) -> dict[str, Tensor]:
        """Numbers per token for the metrics, [n] each; they cost no forward, and nothing is learned from them.

        A name that ends in _min or _max is reported as the smallest or largest of the step, any other as the mean.

        Args:
          logprobs_n: log p under the student that is updated, without a gradient.
          facts: with `answer_log_ratios`, without events.
        """
        return {}

    def batch_statistics(self, batch: Batch) -> dict[str, float]:
        """Numbers for the metrics that the whole batch decides, before the first forward."""
        return {}

    @abstractmethod
    def on_tokens(self, logprobs_n: Tensor, facts: TokenFacts) -> Tensor:
        """A number per token, [n], whose gradient is the estimate.

        Args:
          logprobs_n: log p of the sampled token under the student that is updated, with a gradient.
          facts: what else is known of the tokens.
        """


@dataclass(frozen=True)
class LayerLoss(Loss):
    """A number per token from what some layers give: the student's linear ones, and the teacher's in their place.

    Both read the teacher's hidden states, so a layer's gradient reaches that layer alone, and no layer sees errors of
    those before it. A member writes `on_layers`.
    """

    @property
    def needs(self) -> frozenset[Fact]:
        return frozenset({Fact.teacher_layers})

    @abstractmethod
    def on_layers(self, student_MNE: Tensor, teacher_MNE: Tensor) -> Tensor:
        """A number per token, [N], with a gradient into the student's outputs [M, N, E]."""


@dataclass(frozen=True)
class PairFacts:
    """What is known of P pairs of answers beside the student's log-probabilities.

    Fields:
      preferred_reference_P, rejected_reference_P: [P] summed log-probabilities under the reference; NaN unless the term
        needs `Fact.reference`.
      preferred_lengths_P, rejected_lengths_P: [P] tokens of the answers.
    """

    preferred_reference_P: Tensor
    rejected_reference_P: Tensor
    preferred_lengths_P: Tensor
    rejected_lengths_P: Tensor


@dataclass(frozen=True)
class PairLoss(Loss):
    """A number per pair of a preferred and a rejected answer to one prompt. A member writes `on_pairs`."""

    @property
    def needs(self) -> frozenset[Fact]:
        return frozenset({Fact.pair})

    @abstractmethod
    def on_pairs(self, preferred_P: Tensor, rejected_P: Tensor, facts: PairFacts) -> Tensor:
        """A number per pair, [P].

        Args:
          preferred_P, rejected_P: [P] summed log-probabilities of the answers' tokens, the stop token among them, under
            the student that is updated, with a gradient.
        """


def check_share(value: float, key: str) -> None:
    """Refuse a number outside [0, 1]."""
    check_inside(value, key, 0 <= value <= 1, "a share from 0 to 1")
