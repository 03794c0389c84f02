"""What a divergence is: a number per token, from the student's logits and a target."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from tutelage.divergences.support import Support, seen_through, support_named
from tutelage.errors import ConfigurationError
from tutelage.types import Batch, SampledTokens, Target

__all__ = ["Divergence", "check_inside", "check_share"]


@dataclass(frozen=True)
class Divergence(ABC):
    """A distance between student and target, seen through a support.

    Fields:
      support: "student_top_k", "teacher_top_k", "union_top_k" or "full".
      top_k: tokens in the support; of the union, tokens of each side.
      rest: what becomes of the others, see `divergences.support`.

    What a member may say of itself, besides `between`:
      is_sum_over_events: it is a sum of terms that each look at one event, so it may be added up over parts of them.
      generalised_jsd_share: the `target_share` of the generalised Jensen-Shannon divergence that it is, reverse (1) and
        forward KL (0) among them; None if it is none. There are kernels for these.
      is_zero_at_equality: on the whole vocabulary it is 0 where both distributions are equal, and only there.
      needs_rollouts: it is taken on the sampled tokens, through `on_sampled`, and not on distributions alone.
      imitates_tokens: it looks at the sampled tokens only, and at no target; who draws them must know better.
      min_samples_per_prompt: how many answers to a prompt it needs.
    """

    is_sum_over_events: ClassVar[bool] = False
    is_zero_at_equality: ClassVar[bool] = True
    needs_rollouts: ClassVar[bool] = False
    imitates_tokens: ClassVar[bool] = False

    support: str = "student_top_k"
    top_k: int = 16
    rest: str = "tail"
    window: Support = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "window", support_named(self.support, self.top_k, self.rest))

    @property
    def needs_full_target(self) -> bool:
        """The target must be known on the whole vocabulary, so a rollout's sparse record does not suffice."""
        return self.window.needs_full_target

    @property
    def min_samples_per_prompt(self) -> int:
        return 1

    @property
    def generalised_jsd_share(self) -> float | None:
        return None

    @property
    def tokens_per_group(self) -> int | None:
        """How many neighbouring tokens of an answer are compared together; None = each one by itself."""
        return None

    @abstractmethod
    def between(self, student_logprobs: Tensor, target_logprobs: Tensor) -> Tensor:
        """The divergence of two distributions over the same events: [..., events] -> [...], in nats."""

    def credits(self, batch: Batch, rewards_N: Tensor) -> Tensor:
        """From each sampled token's own reward to what it is credited with, [N], over the whole batch.

        Args:
          batch: for who belongs to which answer.
          rewards_N: log target - log p of the sampled tokens, at the rollout.
        """
        return rewards_N

    def on_sampled(self, sampled: SampledTokens, student_logprobs: Tensor, target_logprobs: Tensor) -> Tensor:
        """A number per token whose gradient is the estimate, [n]; only where `needs_rollouts`.

        Args:
          sampled: what is known about the n sampled tokens.
          student_logprobs, target_logprobs: [n, events], as for `between`.
        """
        raise NotImplementedError

    def __call__(self, student_logits: Tensor, target: Tensor | Target) -> Tensor:
        """The divergence per token, [..., V] -> [...]. Gradients flow to the student only."""
        return self.between(*seen_through(self.window, student_logits, target))


def check_share(value: float, key: str) -> None:
    """Refuse a number outside [0, 1]."""
    check_inside(value, key, 0 <= value <= 1, "a share from 0 to 1")


def check_inside(value: float, key: str, is_inside: bool, expected: str) -> None:
    """Refuse a field with what was expected of it; NaN is never inside."""
    if not is_inside:
        raise ConfigurationError(f"divergence.{key} is {value:g}; expected {expected}. Leave it out for the default.")
