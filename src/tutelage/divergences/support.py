"""Through which window a divergence looks at two distributions.

A support turns next-token distributions over V tokens into distributions over *events*; a divergence is then a sum over
events and knows nothing of windows. The student's top-k comes in three forms, which differ in what becomes of the rest:

    tail          K + 1 events: the rest of the mass is one more event. A true KL of coarsened distributions, so it is
                  >= 0, at most the full KL, and it punishes mass that leaves the support. Our default.
    renormalised  K events, both distributions rescaled to sum to 1 on the support. What the paper writes (OPD, arXiv
                  2604.13016, sec. 2; TRB, arXiv 2605.31159). Blind to how much mass lies on the support; with K = 1 it
                  is identically 0.
    truncated     K events, not rescaled: the plain partial sum. Not a KL; it can be negative.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage.distributions import normalise, tail_logprobs
from tutelage.errors import ConfigurationError, ZeroMassError
from tutelage.types import DenseTarget, SparseTarget, Target

__all__ = ["FULL_VOCABULARY", "FullVocabulary", "StudentTopK", "Support", "support_named"]

RESTS = ("tail", "renormalised", "truncated")


@dataclass(frozen=True)
class Support(ABC):
    """A window on the vocabulary."""

    needs_full_target = False

    @abstractmethod
    def events(self, student_logits: Tensor, target: Target) -> tuple[Tensor, Tensor]:
        """Log-probabilities of student and target on the same events, [..., events] each.

        Args:
          student_logits: [..., V]; need not be normalised.
          target: sparse or dense, same leading axes.
        """


@dataclass(frozen=True)
class FullVocabulary(Support):
    """Every token is an event."""

    needs_full_target = True

    def events(self, student_logits: Tensor, target: Target) -> tuple[Tensor, Tensor]:
        if isinstance(target, SparseTarget):
            raise ConfigurationError(
                "divergence.support is 'full', but the target is known on a top-k support only. "
                "Use support = 'student_top_k', or keep the teacher loaded so that it can be asked for all tokens."
            )
        return normalise(student_logits), normalise(target.logits)


@dataclass(frozen=True)
class StudentTopK(Support):
    """The student's K most probable tokens, and what `rest` says about the others.

    The support is the actor's: with a sparse target it is the one recorded when the token was sampled, otherwise the
    present student's. No gradient flows through the choice.

    Fields:
      k: at least 1; at most V tokens are used.
      rest: "tail", "renormalised" or "truncated", see the module.
    """

    k: int = 16
    rest: str = "tail"

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ConfigurationError(f"divergence.top_k is {self.k}; a support needs at least 1 token. Use 16.")
        if self.rest not in RESTS:
            raise ConfigurationError(f"divergence.rest is {self.rest!r}; expected one of {', '.join(RESTS)}.")

    def events(self, student_logits: Tensor, target: Target) -> tuple[Tensor, Tensor]:
        student_logprobs = normalise(student_logits)
        if isinstance(target, DenseTarget):
            # Which tokens are looked at is a choice, not a function to differentiate.
            ids = student_logprobs.detach().topk(min(self.k, student_logprobs.shape[-1]), dim=-1).indices
            full_target = normalise(target.logits)
            target_kept = full_target.gather(-1, ids)
            target_tail = tail_logprobs(full_target, ids)
        else:
            ids = target.support_ids[..., : self.k].long()
            if ids.shape[-1] < min(self.k, student_logprobs.shape[-1]):
                raise ConfigurationError(
                    f"divergence.top_k is {self.k}, but the rollouts kept {ids.shape[-1]} tokens. "
                    "Set rollout.support_size to at least divergence.top_k."
                )
            target_kept = target.logprobs[..., : self.k]
            left_out = target.logprobs[..., self.k :]
            tails = torch.cat([left_out, target.tail_logprobs[..., None]], dim=-1)
            target_tail = torch.logsumexp(tails, dim=-1) if left_out.shape[-1] else target.tail_logprobs
        student_kept = student_logprobs.gather(-1, ids)
        if self.rest == "tail":
            student_tail = tail_logprobs(student_logprobs, ids)
            return _with_tail(student_kept, student_tail), _with_tail(target_kept, target_tail)
        if self.rest == "renormalised":
            return _renormalised(student_kept, "student"), _renormalised(target_kept, "target")
        return student_kept, target_kept


FULL_VOCABULARY = FullVocabulary()


def support_named(name: str, top_k: int, rest: str) -> Support:
    """The support that a run file means: "full", or "student_top_k" with its two numbers."""
    if name == "full":
        return FULL_VOCABULARY
    if name == "student_top_k":
        return StudentTopK(top_k, rest)
    raise ConfigurationError(f"divergence.support is {name!r}; expected 'student_top_k' or 'full'.")


def _with_tail(kept: Tensor, tail: Tensor) -> Tensor:
    return torch.cat([kept, tail[..., None]], dim=-1)


def _renormalised(kept: Tensor, whose: str) -> Tensor:
    mass = torch.logsumexp(kept, dim=-1, keepdim=True)
    if bool((mass == float("-inf")).any()):
        raise ZeroMassError(
            f"the {whose} has no mass at all on the student's top-{kept.shape[-1]} tokens at some position, so it "
            "cannot be renormalised there. Use divergence.rest = 'tail', or a larger divergence.top_k."
        )
    return kept - mass
