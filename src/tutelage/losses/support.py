"""Through which window a divergence looks at two distributions.

A support turns next-token distributions over V tokens into distributions over *events*; a divergence is then a sum over
events and knows nothing of windows. The tokens of a top-k are those most probable to the student, to the teacher, or to
either of them (their union). Only the first of these can be read off a rollout's record; the others need the teacher's
whole distribution. Each comes in three forms, which differ in what becomes of the rest:

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
from typing import ClassVar

import torch
from torch import Tensor

from tutelage.distributions import normalise, tail_logprobs
from tutelage.errors import ConfigurationError, ZeroMassError
from tutelage.types import DenseTarget, Fact, SparseTarget, Target

__all__ = [
    "FULL_VOCABULARY",
    "FullVocabulary",
    "StudentTopK",
    "Support",
    "TeacherTopK",
    "UnionTopK",
    "seen_through",
    "support_named",
]

RESTS = ("tail", "renormalised", "truncated")


@dataclass(frozen=True)
class Support(ABC):
    """A window on the vocabulary.

    What a member says of itself:
      fact: what must be known of the teacher.
      needs_full_target: that is its whole distribution, so a rollout's sparse record does not suffice.
    """

    fact: ClassVar[Fact]
    needs_full_target: ClassVar[bool] = False

    @property
    @abstractmethod
    def name(self) -> str:
        """As a run file has it."""

    def events(self, student_logits: Tensor, target: Target) -> tuple[Tensor, Tensor]:
        """Log-probabilities of student and target on the same events, [..., events] each.

        Args:
          student_logits: [..., V]; need not be normalised.
          target: sparse or dense, same leading axes.
        """
        return self.events_and_ids(student_logits, target)[:2]

    @abstractmethod
    def events_and_ids(self, student_logits: Tensor, target: Target) -> tuple[Tensor, Tensor, Tensor | None]:
        """`events`, and the ids [..., K'] of tokens that are events of their own; None = all are."""


@dataclass(frozen=True)
class FullVocabulary(Support):
    """Every token is an event."""

    fact = Fact.teacher_full
    needs_full_target = True

    @property
    def name(self) -> str:
        return "full"

    def events_and_ids(self, student_logits: Tensor, target: Target) -> tuple[Tensor, Tensor, Tensor | None]:
        if isinstance(target, SparseTarget):
            raise _known_on_a_record_only("full", target.whose)
        return normalise(student_logits), normalise(target.logits), None


@dataclass(frozen=True)
class TopK(Support):
    """K tokens, and what `rest` says about the others. No gradient flows through the choice.

    Fields:
      k: at least 1; at most V tokens are used.
      rest: "tail", "renormalised" or "truncated", see the module.
    """

    k: int = 16
    rest: str = "tail"
    whose: ClassVar[str]
    may_repeat: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ConfigurationError(f"divergence.top_k is {self.k}; a support needs at least 1 token. Use 16.")
        if self.rest not in RESTS:
            raise ConfigurationError(f"divergence.rest is {self.rest!r}; expected one of {', '.join(RESTS)}.")

    @property
    def name(self) -> str:
        return f"{self.whose}_top_k"

    @abstractmethod
    def choose(self, student_logprobs: Tensor, teacher_logprobs: Tensor) -> Tensor:
        """Token ids [..., K'], an id may stand there twice only if `may_repeat`, and counts once."""

    def events_and_ids(self, student_logits: Tensor, target: Target) -> tuple[Tensor, Tensor, Tensor | None]:
        if isinstance(target, SparseTarget):
            if target.whose != self.whose:
                raise _known_on_a_record_only(f"{self.whose}_top_k", target.whose)
            return self._on_record(normalise(student_logits), target)
        student_logprobs, target_logprobs = normalise(student_logits), normalise(target.logits)
        # Which tokens are looked at is a choice, not a function to differentiate.
        ids = self.choose(student_logprobs.detach(), target_logprobs.detach())
        target_tail = tail_logprobs(target_logprobs, ids)
        return *self._on(ids, student_logprobs, target_logprobs.gather(-1, ids), target_tail, self.may_repeat), ids

    def _on_record(self, student_logprobs: Tensor, target: SparseTarget) -> tuple[Tensor, Tensor, Tensor]:
        """On the first k tokens of a record; what it kept beyond them joins the rest."""
        ids = self.recorded_ids(target, student_logprobs.shape[-1])
        # Where a server names fewer events than K, one of them is repeated.
        return *self._on(ids, student_logprobs, *self._recorded(target), may_repeat=target.whose == "teacher"), ids

    def recorded_ids(self, target: SparseTarget, vocabulary_size: int) -> Tensor:
        """The support of a record: [..., K]."""
        ids = target.support_ids[..., : self.k].long()
        if ids.shape[-1] < min(self.k, vocabulary_size):
            raise ConfigurationError(
                f"divergence.top_k is {self.k}, but the rollouts kept {ids.shape[-1]} tokens. "
                "Set rollout.support_size to at least divergence.top_k."
            )
        return ids

    def events_on_record(
        self, student_kept: Tensor, student_tail: Tensor, target: SparseTarget
    ) -> tuple[Tensor, Tensor]:
        """`events` of a student that is known on `recorded_ids`, [..., K], and on all others as one, [...], only."""
        return self._formed(student_kept, student_tail, *self._recorded(target))

    def _recorded(self, target: SparseTarget) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the target on `recorded_ids`, and on all others."""
        left_out = target.logprobs[..., self.k :]
        tails = torch.cat([left_out, target.tail_logprobs[..., None]], dim=-1)
        target_tail = torch.logsumexp(tails, dim=-1) if left_out.shape[-1] else target.tail_logprobs
        return target.logprobs[..., : self.k], target_tail

    def _on(
        self, ids: Tensor, student_logprobs: Tensor, target_kept: Tensor, target_tail: Tensor, may_repeat: bool
    ) -> tuple[Tensor, Tensor]:
        student_kept = student_logprobs.gather(-1, ids)
        if may_repeat:
            # A repeat becomes an event that neither side has, which contributes nothing.
            is_repeated = _repeats(ids)
            student_kept = student_kept.masked_fill(is_repeated, float("-inf"))
            target_kept = target_kept.masked_fill(is_repeated, float("-inf"))
        student_tail = tail_logprobs(student_logprobs, ids) if self.rest == "tail" else None
        return self._formed(student_kept, student_tail, target_kept, target_tail)

    def _formed(
        self, student_kept: Tensor, student_tail: Tensor | None, target_kept: Tensor, target_tail: Tensor
    ) -> tuple[Tensor, Tensor]:
        if self.rest == "tail":
            assert student_tail is not None
            return _with_tail(student_kept, student_tail), _with_tail(target_kept, target_tail)
        if self.rest == "renormalised":
            return _renormalised(student_kept, "student", self), _renormalised(target_kept, "target", self)
        return student_kept, target_kept


@dataclass(frozen=True)
class StudentTopK(TopK):
    """The student's K most probable tokens.

    The support is the actor's: with a sparse target it is the one recorded when the token was sampled, otherwise the
    present student's.
    """

    fact = Fact.teacher_support
    whose = "student"

    def choose(self, student_logprobs: Tensor, teacher_logprobs: Tensor) -> Tensor:
        return _most_probable(student_logprobs, self.k)


@dataclass(frozen=True)
class TeacherTopK(TopK):
    """The teacher's K most probable tokens, whatever the student thinks of them.

    With a sparse target they are those that a server or a score cache recorded.
    """

    fact = Fact.teacher_top
    needs_full_target = True
    whose = "teacher"

    def choose(self, student_logprobs: Tensor, teacher_logprobs: Tensor) -> Tensor:
        return _most_probable(teacher_logprobs, self.k)


@dataclass(frozen=True)
class UnionTopK(TopK):
    """The student's K most probable tokens and the teacher's: between K and 2 K tokens."""

    fact = Fact.teacher_full
    needs_full_target = True
    whose = "union"
    may_repeat = True

    def choose(self, student_logprobs: Tensor, teacher_logprobs: Tensor) -> Tensor:
        return torch.cat([_most_probable(student_logprobs, self.k), _most_probable(teacher_logprobs, self.k)], dim=-1)


FULL_VOCABULARY = FullVocabulary()
TOP_KS: dict[str, type[TopK]] = {f"{member.whose}_top_k": member for member in (StudentTopK, TeacherTopK, UnionTopK)}


def support_named(name: str, top_k: int, rest: str) -> Support:
    """The support that a run file means: "full", or a top-k with its two numbers."""
    StudentTopK(top_k, rest)  # checked even for a full support, which ignores them
    if name == "full":
        return FULL_VOCABULARY
    if name in TOP_KS:
        return TOP_KS[name](top_k, rest)
    raise ConfigurationError(f"divergence.support is {name!r}; expected one of {', '.join(TOP_KS)}, full.")


def seen_through(support: Support, student_logits: Tensor, target: Tensor | Target) -> tuple[Tensor, Tensor]:
    """Student and target on the support's events; a plain tensor is a target on the whole vocabulary.

    The target comes detached: it is what to imitate, and moving it towards the student is not learning.
    """
    target = DenseTarget(target) if isinstance(target, Tensor) else target
    student_logprobs, target_logprobs = support.events(student_logits, target)
    return student_logprobs, target_logprobs.detach()


def _most_probable(logprobs: Tensor, k: int) -> Tensor:
    return logprobs.topk(min(k, logprobs.shape[-1]), dim=-1).indices


def _repeats(ids: Tensor) -> Tensor:
    """True where an id is at an earlier place already."""
    is_same = ids[..., :, None] == ids[..., None, :]
    return is_same.tril(diagonal=-1).any(-1)


def _with_tail(kept: Tensor, tail: Tensor) -> Tensor:
    return torch.cat([kept, tail[..., None]], dim=-1)


def _renormalised(kept: Tensor, side: str, support: TopK) -> Tensor:
    mass = torch.logsumexp(kept, dim=-1, keepdim=True)
    if bool((mass == float("-inf")).any()):
        owner = "student's and the teacher's" if support.whose == "union" else f"{support.whose}'s"
        raise ZeroMassError(
            f"the {side} has no mass at all on the {owner} top-{support.k} tokens at some position, so it "
            "cannot be renormalised there. Use divergence.rest = 'tail', or a larger divergence.top_k."
        )
    return kept - mass


def _known_on_a_record_only(support: str, whose: str) -> ConfigurationError:
    return ConfigurationError(
        f"divergence.support is {support!r}, but the target is known on a top-k support only. "
        f"Use support = '{whose}_top_k', or keep the teacher loaded so that it can be asked for all tokens."
    )
