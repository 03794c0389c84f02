"""What a policy is: a pure function from the student's and the teacher's next-token logits to one distribution.

A member is a frozen dataclass whose fields are its hyperparameters, each a number or a schedule. It writes
`needs_teacher` and `__call__`; it overrides `at` only where some value of a field makes it another member.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from torch import Tensor

from tutelage.distributions import gather_logprobs, normalise
from tutelage.errors import ConfigurationError
from tutelage.kernels import Judged, draw, has_kernels
from tutelage.schedules import Schedule, as_schedule, at_step, plain_number

__all__ = ["Behaviour", "Policy", "Softmax", "check_not_negative", "check_share", "check_teacher", "plain_number"]


class Behaviour:
    """The distribution to draw the next token from.

    Attributes:
      logprobs_BV: log mu, normalised, float32 or wider; -inf marks an impossible token.
      diagnostics: what the policy knows about each row, [B] each. Two names are shared by all members that have them:
        "blend", the teacher's share in [0, 1], and "kl_to_student", KL(mu || p) in nats.

    Judging drafts needs the probability of one token per row, and whole rows only where a draft is refused. A policy
    that can compute the former without the latter overrides the methods.
    """

    def __init__(self, logprobs_BV: Tensor, diagnostics: dict[str, Tensor] | None = None) -> None:
        self._logprobs_BV = logprobs_BV
        self.diagnostics = diagnostics or {}

    @property
    def logprobs_BV(self) -> Tensor:
        return self._logprobs_BV

    @property
    def vocabulary_size(self) -> int:
        """V."""
        return self.logprobs_BV.shape[-1]

    def logprobs_of(self, tokens_B: Tensor) -> Tensor:
        """log mu of one given token per row, [B]."""
        return gather_logprobs(self.logprobs_BV, tokens_B)

    def rows(self, index: tuple[Any, ...]) -> Tensor:
        """log mu of R rows, [R, V], named by their places in the leading axes."""
        return self.logprobs_BV[index]

    def draw(self, uniforms_B: Tensor) -> Tensor:
        """A token per row, as `distributions.sample` draws it."""
        return draw(self.logprobs_BV, uniforms_B)

    def student(self, student_logits_BV: Tensor) -> Behaviour:
        """p beside mu, from the logits that the policy was given; what has been read of them for mu stays read."""
        return Softmax(student_logits_BV)

    def judged(self, drafts_B: Tensor, keeps_B: Tensor) -> Judged | None:
        """What a kernel says of one draft per row, see `kernels.judge_trust_region`; None = there is no kernel."""
        return None


class Softmax(Behaviour):
    """What logits stand for; whole rows are normalised when they are asked for."""

    def __init__(self, logits_BV: Tensor) -> None:
        self.logits_BV = logits_BV
        self.diagnostics = {}

    @property
    def vocabulary_size(self) -> int:
        return self.logits_BV.shape[-1]

    @cached_property
    def logprobs_BV(self) -> Tensor:
        return normalise(self.logits_BV)

    def rows(self, index: tuple[Any, ...]) -> Tensor:
        is_known = "logprobs_BV" in self.__dict__
        return self.logprobs_BV[index] if is_known else normalise(self.logits_BV[index])

    def draw(self, uniforms_B: Tensor) -> Tensor:
        is_read_once = has_kernels(self.logits_BV.device)
        return draw(self.logits_BV if is_read_once else self.logprobs_BV, uniforms_B)

    def student(self, student_logits_BV: Tensor) -> Behaviour:
        return self if student_logits_BV is self.logits_BV else super().student(student_logits_BV)


@dataclass(frozen=True)
class Policy(ABC):
    """Chooses the distribution that the next token is drawn from.

    Class fields that a member may override:
      is_offline: the policy draws no tokens; its answers exist already.
      edits_answers: it changes finished answers, and has no distribution of a next token alone.
    """

    is_offline: ClassVar[bool] = False
    edits_answers: ClassVar[bool] = False

    @property
    @abstractmethod
    def needs_teacher(self) -> bool:
        """Whether the teacher's logits are used at any step."""

    def at(self, step: int) -> Policy:
        """This policy at one training step, with plain numbers in place of schedules; itself where nothing moves."""
        return at_step(self, step)

    @abstractmethod
    def __call__(self, student_logits_BV: Tensor, teacher_logits_BV: Tensor | None) -> Behaviour:
        """The distribution at each row's prefix.

        Args:
          student_logits_BV, teacher_logits_BV: need not be normalised; -inf allowed. The teacher's may be None where
            `needs_teacher` is False.
        """

    def propose(
        self, student_logits_BV: Tensor, teacher_logits_BV: Tensor | None, positions_B: Tensor | None = None
    ) -> Behaviour:
        """What an engine calls: the distribution at each row's prefix, at its place in the answer.

        Only a policy that depends on the place overrides this; for the others it is the call itself.

        Args:
          positions_B: tokens of the answer that stand before the row's; 0 = its first token. None = not known.
        """
        return self(student_logits_BV, teacher_logits_BV)


def check_not_negative(value: float | Schedule, key: str, reason: str) -> None:
    """Refuse a field that is, or becomes at some step, less than 0. `reason` says what is wrong and what to do."""
    lowest, _ = as_schedule(value, key).bounds()
    if lowest < 0:
        verb = "reaches" if isinstance(value, Schedule) else "is"
        raise ConfigurationError(f"{key} {verb} {lowest:g}; {reason}")


def check_share(value: float | Schedule, key: str) -> None:
    """Refuse a field that is, or becomes at some step, less than 0 or more than 1."""
    check_not_negative(value, key, "a share cannot be negative. Use 0 for the student itself.")
    _, largest = as_schedule(value, key).bounds()
    if largest > 1:
        verb = "reaches" if isinstance(value, Schedule) else "is"
        raise ConfigurationError(f"{key} {verb} {largest:g}; a share is at most 1. Use 1 for the teacher itself.")


def check_teacher(teacher_logits_BV: Tensor | None, policy: Policy) -> Tensor:
    """The teacher's logits, refused if they are missing."""
    if teacher_logits_BV is None:
        raise ConfigurationError(
            f"{policy!r} got no teacher logits; it draws from the teacher as well. "
            "Use an engine that runs the teacher beside the student, or the student policy."
        )
    return teacher_logits_BV
