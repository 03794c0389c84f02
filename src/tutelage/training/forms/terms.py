"""The terms that give a number per token, on the tokens of one micro-batch.

Axis letters: N response tokens of the micro-batch, n of a chunk or block, E events, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from tutelage.losses import DistributionLoss, Support, TokenFacts, TokenLoss
from tutelage.models import LanguageModel, Vocabulary
from tutelage.targets import TargetRule
from tutelage.training.recipe import windows_of
from tutelage.types import Fact, Rollout

__all__ = ["Events", "MicroBatch", "TokenTerms", "is_among"]


@dataclass(frozen=True)
class MicroBatch:
    """Some answers after the student's forward.

    Fields:
      student: whose hidden states these are; its head is still to be applied.
      vocabulary: the shared one.
      rollouts: each with at least one token.
      hidden_ND: final hidden states that predict the response tokens, with a graph to the student's parameters.
      tokens_N: the response tokens.
      weights_N: what the loss weighs each token's value with, up to a common factor.
    """

    student: LanguageModel
    vocabulary: Vocabulary
    rollouts: Sequence[Rollout]
    hidden_ND: Tensor
    tokens_N: Tensor
    weights_N: Tensor


class Events(NamedTuple):
    """Log-probabilities of the models on the events of one window, [n, E] each.

    `is_inside`: [n], see `TokenFacts`; None where no term asks.
    """

    student: Tensor
    teacher: Tensor
    reference: Tensor | None = None
    is_inside: Tensor | None = None


class Seen(NamedTuple):
    """What a loss sees through its window: student and target on the same events, and `is_inside` of `Events`."""

    student: Tensor | None = None
    target: Tensor | None = None
    is_inside: Tensor | None = None


UNSEEN = Seen()


@dataclass(frozen=True)
class TokenTerms:
    """Distribution and token losses, and what is known of the tokens that they are taken on.

    Fields:
      losses: with numbers in place of schedules, none with a coefficient of 0.
      target: the rule that makes a target of the models' distributions.
      known: name -> [N] on the device: the fields of `TokenFacts`, and of the token loss at place i its advantages
        under "advantages.i" and, if it has any, its factors under "factors.i".
    """

    losses: Sequence[DistributionLoss | TokenLoss]
    target: TargetRule
    known: Mapping[str, Tensor]

    @property
    def windows(self) -> list[Support]:
        """The supports that distributions are seen through, each once."""
        return windows_of(self.losses)

    @property
    def distribution_losses(self) -> list[DistributionLoss]:
        """Those that look at no sampled token."""
        return [loss for loss in self.losses if isinstance(loss, DistributionLoss)]

    @property
    def token_losses(self) -> dict[int, TokenLoss]:
        """Those that look at sampled tokens, by their places among all."""
        return {place: loss for place, loss in enumerate(self.losses) if isinstance(loss, TokenLoss)}

    def asks_inside(self, window: Support) -> bool:
        """Some term looks through this window and asks which of its events a sampled token is."""
        return any(loss.asks_inside and loss.window == window for loss in self.token_losses.values())

    @property
    def learns_from_tokens(self) -> bool:
        """Some term has a gradient through log p of the sampled tokens."""
        return bool(self.token_losses)

    def __call__(self, events: Callable[[Support], Events], logprobs_n: Tensor, span: slice) -> Tensor:
        """The sum of all terms, [n].

        Args:
          events: of a window of theirs.
          logprobs_n: log p of the sampled tokens, with a gradient where `learns_from_tokens`.
          span: which tokens they are.
        """
        found = {window: events(window) for window in self.windows}
        compared = {window: self.compared(each) for window, each in found.items()}
        seen = {window: Seen(*compared[window], each.is_inside) for window, each in found.items()}
        values = [
            self._of_tokens(place, loss, seen, logprobs_n, span)
            if isinstance(loss, TokenLoss)
            else loss.factor * loss.between(*compared[loss.window])
            for place, loss in enumerate(self.losses)
        ]
        return _sum(values)

    def compared(self, events: Events) -> tuple[Tensor, Tensor]:
        """Student and target on the same events."""
        # What to imitate is a fixed point of this update: no gradient flows into it, unless the target says so.
        student = events.student.detach() if self.target.is_constant else events.student
        return events.student, self.target(student, events.teacher, events.reference)

    def between(self, student_nE: Tensor, teacher_nE: Tensor) -> Tensor:
        """The sum of the distribution losses that see the same events, [n]."""
        compared = self.compared(Events(student_nE, teacher_nE))
        values = [loss.factor * loss.between(*compared) for loss in self.distribution_losses]
        return _sum(values)

    def on_tokens(self, logprobs_n: Tensor, span: slice) -> Tensor:
        """The sum of the token losses, which look at no events, [n]."""
        values = [self._of_tokens(place, loss, {}, logprobs_n, span) for place, loss in self.token_losses.items()]
        return _sum(values)

    def statistics(self, logprobs_N: Tensor, answer_log_ratios_N: Tensor) -> list[tuple[str, Tensor]]:
        """What the token losses report of all tokens, [N] each, given log p and its answers' ratios as they are now."""
        found: list[tuple[str, Tensor]] = []
        for place, loss in self.token_losses.items():
            facts = replace(self._facts(place, loss, {}, slice(None)), answer_log_ratios=answer_log_ratios_N)
            found += loss.statistics(logprobs_N, facts).items()
        return found

    def _of_tokens(
        self,
        place: int,
        loss: TokenLoss,
        seen: Mapping[Support, Seen],
        logprobs_n: Tensor,
        span: slice,
    ) -> Tensor:
        values_n = loss.factor * loss.on_tokens(logprobs_n, self._facts(place, loss, seen, span))
        if f"factors.{place}" not in self.known:
            return values_n
        factors_n = self.known[f"factors.{place}"][span]
        # What does not count must not count when it is infinite, either.
        return factors_n.to(values_n) * values_n.masked_fill(factors_n == 0, 0)

    def _facts(self, place: int, loss: TokenLoss, seen: Mapping[Support, Seen], span: slice) -> TokenFacts:
        """What a loss is told of some tokens; events only of windows that were seen."""
        student, target, is_inside = UNSEEN if loss.window is None else seen.get(loss.window, UNSEEN)
        known = self.known
        return TokenFacts(
            student_logprobs=known["student_logprobs"][span],
            behaviour_logprobs=known["behaviour_logprobs"][span],
            target_logprobs=known["target_logprobs"][span],
            advantages=known[f"advantages.{place}"][span],
            uniforms=known["uniforms"][span],
            is_teachers=known["is_teachers"][span],
            reference_logprobs=known["reference_logprobs"][span] if Fact.reference in loss.needs else None,
            answer_log_ratios=known["answer_log_ratios"][span] if loss.asks_answer_ratio else None,
            student_events=student,
            target_events=target,
            is_inside=is_inside if loss.asks_inside else None,
        )


def is_among(tokens: Tensor, ids: Tensor | None) -> Tensor:
    """Whether a token, [...], is one of its own ids, [..., K']; None = of all there are."""
    return torch.ones_like(tokens, dtype=torch.bool) if ids is None else (ids == tokens[..., None]).any(-1)


def _sum(values: Sequence[Tensor]) -> Tensor:
    """Term by term; one alone stays as it is, without a copy."""
    return torch.stack(list(values)).sum(0) if len(values) > 1 else values[0]
