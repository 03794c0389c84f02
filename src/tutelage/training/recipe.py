"""A method: who draws the answers, what is minimised on them, and how much each token counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tutelage.advantages import Advantage
from tutelage.errors import ConfigurationError
from tutelage.losses import DistributionLoss, Loss, Support, TokenLoss
from tutelage.losses.support import TopK
from tutelage.policies import Policy
from tutelage.targets import TargetRule
from tutelage.types import Fact
from tutelage.weighting import UNIFORM, Weighting

__all__ = ["OF_TEACHER", "Recipe"]

# What nobody knows without a teacher.
OF_TEACHER = frozenset(fact for fact in Fact if fact.name.startswith("teacher_"))


@dataclass(frozen=True)
class Recipe:
    """A point of the design space.

    Fields:
      policy: who picks the next token.
      target: what the distribution losses imitate, and token losses measure by.
      losses: the terms of the objective; their sum is minimised.
      weighting: how much each token counts in the distribution and token losses.

    Raises:
      ConfigurationError: there is no term, or parts that contradict each other.
    """

    policy: Policy
    target: TargetRule
    losses: tuple[Loss, ...]
    weighting: Weighting = UNIFORM

    def __post_init__(self) -> None:
        if not self.losses:
            raise ConfigurationError("the recipe has no loss, so there is nothing to learn from. Add one to [[loss]].")
        for loss in self.losses:
            _check_fits(loss, self.target)

    @property
    def needs(self) -> frozenset[Fact]:
        """What must be known of a batch before its update."""
        return self.weighting.needs.union(self.target.needs, *(self.needs_of(loss) for loss in self.losses))

    def needs_of(self, loss: Loss) -> frozenset[Fact]:
        """What a loss must know of a batch; a weighting that chooses among the student's tokens tells them apart."""
        return loss.needs - ({Fact.teacher_drawn} if self.weighting.looks_at_token else set())

    @property
    def asks_teacher(self) -> bool:
        """A teacher must be there, to draw, to read, or for its layers; recorded scores replace the first two."""
        if self.policy.is_offline:
            return Fact.teacher_layers in self.needs
        return self.policy.needs_teacher or bool(self.needs & OF_TEACHER)

    @property
    def windows(self) -> list[Support]:
        """The supports that distributions are seen through, each once."""
        return windows_of(self.losses)

    @property
    def asks_whole_teacher(self) -> bool:
        """Some loss looks for tokens in the teacher's whole distribution, so a rollout's record may not suffice."""
        return any(window.needs_full_target for window in self.windows)

    @property
    def compares_with_reference(self) -> bool:
        """There must be a third model."""
        return bool(self.needs & {Fact.reference, Fact.moving_reference})

    @property
    def reads_reference(self) -> bool:
        """The reference must read finished answers before the update."""
        is_recorded = bool(self.target.needs) and not self.asks_whole_teacher
        return is_recorded or any(Fact.reference in loss.needs for loss in self.losses)

    @property
    def top_k(self) -> int:
        """Most tokens of a recorded support that some loss looks at, at least 1."""
        return max((window.k for window in self.windows if isinstance(window, TopK)), default=1)

    @property
    def min_samples_per_prompt(self) -> int:
        """How many answers to a prompt its advantages compare."""
        return max((advantage.min_samples_per_prompt for advantage in self.advantages), default=1)

    @property
    def advantages(self) -> list[Advantage]:
        """What the token losses ask for the worth of tokens."""
        found = [loss.advantage for loss in self.losses if isinstance(loss, TokenLoss)]
        return [advantage for advantage in found if advantage is not None]

    def rewarded_by(self, reward: str) -> list[TokenLoss]:
        """The token losses whose advantage reads a reward."""
        tokens = [loss for loss in self.losses if isinstance(loss, TokenLoss)]
        return [loss for loss in tokens if loss.advantage is not None and reward in loss.advantage.rewards]

    def at(self, step: int) -> Recipe:
        """The recipe with numbers in place of schedules."""
        losses = tuple(loss.at(step) for loss in self.losses)
        return Recipe(self.policy.at(step), self.target.at(step), losses, self.weighting)


def window_of(loss: Loss) -> Support | None:
    """The support that a loss looks through at distributions; None = it looks at none."""
    return loss.window if isinstance(loss, DistributionLoss | TokenLoss) else None


def windows_of(losses: Sequence[Loss]) -> list[Support]:
    """The supports that some losses look through at distributions, each once."""
    return list(dict.fromkeys(window for loss in losses if (window := window_of(loss)) is not None))


def _check_fits(loss: Loss, target: TargetRule) -> None:
    """Refuse a loss that shows the target less than it must see."""
    name, window = type(loss).__name__, window_of(loss)
    if isinstance(window, TopK):
        if target.is_normalised and window.rest == "truncated":
            raise ConfigurationError(
                f"divergence.rest is 'truncated', but the target {target} is normalised over the events that it "
                "sees, which must then be all there are. Use divergence.rest = 'tail' or 'renormalised', or "
                "divergence.support = 'full'."
            )
        if target.needs and window.whose != "student":
            raise ConfigurationError(
                f"divergence.support is '{window.whose}_top_k', but the target {target} compares with a "
                "third model, whose own tokens would be looked at then. Use support = 'student_top_k' or 'full'."
            )
    looks_at_target = isinstance(loss, TokenLoss) and Fact.teacher_token in loss.needs
    if looks_at_target and not target.acts_per_token:
        raise ConfigurationError(
            f"the loss {name} looks at sampled tokens, but the target {type(target).__name__} is known as a whole "
            "distribution only: one token's probability says too little. Use target = 'teacher', or a divergence over "
            "a support, such as 'reverse_kl'."
        )
