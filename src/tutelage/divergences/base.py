"""What a divergence is: a number per token, from the student's logits and a target."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from tutelage.divergences.support import Support, support_named
from tutelage.types import Target

__all__ = ["Divergence"]


@dataclass(frozen=True)
class Divergence(ABC):
    """A distance between student and target, seen through a support.

    Fields:
      support: "student_top_k" or "full".
      top_k: tokens in the support.
      rest: what becomes of the others, see `divergences.support`.

    A member that `imitates_tokens` needs only the sampled tokens: the loss is its `of_tokens`, not its `between`.
    """

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

    @abstractmethod
    def between(self, student_logprobs: Tensor, target_logprobs: Tensor) -> Tensor:
        """The divergence of two distributions over the same events: [..., events] -> [...], in nats."""

    def of_tokens(self, student_logprobs: Tensor) -> Tensor:
        """The loss of sampled tokens from their log-probabilities under the student: [...] -> [...], in nats."""
        raise NotImplementedError(f"{self!r} compares distributions; it has no value for a sampled token")

    def __call__(self, student_logits: Tensor, target: Target) -> Tensor:
        """The divergence per token, [..., V] -> [...]. Gradients flow to the student only."""
        student_logprobs, target_logprobs = self.window.events(student_logits, target)
        # The target is what to imitate; moving it towards the student is not learning.
        return self.between(student_logprobs, target_logprobs.detach())
