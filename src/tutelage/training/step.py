"""A method: who draws, what is imitated, how far that is, and how much each token counts."""

from __future__ import annotations

from dataclasses import dataclass

from tutelage.divergences import Divergence
from tutelage.errors import ConfigurationError
from tutelage.policies import Policy
from tutelage.targets import TargetRule
from tutelage.weighting import UNIFORM, Weighting

__all__ = ["Recipe"]


@dataclass(frozen=True)
class Recipe:
    """A method: a point on the axes.

    Raises:
      ConfigurationError: the target must see all events, and the divergence shows it a part of them.
    """

    policy: Policy
    target: TargetRule
    divergence: Divergence
    weighting: Weighting = UNIFORM

    def __post_init__(self) -> None:
        is_partial = self.divergence.support != "full" and self.divergence.rest == "truncated"
        if self.target.is_normalised and is_partial:
            raise ConfigurationError(
                f"divergence.rest is 'truncated', but the target {self.target} is normalised over the events that it "
                "sees, which must then be all there are. Use divergence.rest = 'tail' or 'renormalised', or "
                "divergence.support = 'full'."
            )
        if self.target.needs is not None and self.divergence.support in ("teacher_top_k", "union_top_k"):
            raise ConfigurationError(
                f"divergence.support is {self.divergence.support!r}, but the target {self.target} compares with a "
                "third model, whose own tokens would be looked at then. Use support = 'student_top_k' or 'full'."
            )
        looks_at_tokens = self.divergence.needs_rollouts and not self.divergence.imitates_tokens
        if looks_at_tokens and not self.target.acts_per_token:
            raise ConfigurationError(
                f"the divergence {type(self.divergence).__name__} looks at sampled tokens, but the target "
                f"{type(self.target).__name__} is known as a whole distribution only: one token's probability says too "
                "little. Use target = 'teacher', or a divergence over a support, such as 'reverse_kl'."
            )
