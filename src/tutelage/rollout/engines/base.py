"""What an engine is: it makes answers under those policies that it can serve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tutelage.errors import ConfigurationError
from tutelage.policies import Policy
from tutelage.rollout.request import Request
from tutelage.types import Rollout

__all__ = ["Engine", "Engines", "check_served"]


class Engine(Protocol):
    """Makes answers, each distributed exactly as the policy's product of next-token distributions."""

    def refusal(self, policy: Policy) -> str | None:
        """Why this engine cannot serve a policy, and what to do; None = it can."""

    def sync(self, policy: Policy, step: int) -> None:
        """Make sure that answers under `policy` come from the student's weights after `step` updates.

        Call it before the answers of a step are asked for; of several processes, all call it together.
        """

    def answer(self, policy: Policy, request: Request) -> list[Rollout]:
        """Answers to a request, ordered by prompt, then by sample.

        Args:
          policy: with its schedules resolved (`policy.at(step)`).
        Raises:
          ConfigurationError: the policy is refused.
        """


@dataclass(frozen=True)
class Engines:
    """Several engines as one: each policy is served by the first engine that does not refuse it.

    Fields:
      members: at least one; where all refuse, the last one's words are given.
    """

    members: Sequence[Engine]

    def refusal(self, policy: Policy) -> str | None:
        return self._serving(policy).refusal(policy)

    def sync(self, policy: Policy, step: int) -> None:
        self._serving(policy).sync(policy, step)

    def answer(self, policy: Policy, request: Request) -> list[Rollout]:
        return self._serving(policy).answer(policy, request)

    def _serving(self, policy: Policy) -> Engine:
        """The first engine that serves the policy; the last one where none does."""
        return next((engine for engine in self.members if engine.refusal(policy) is None), self.members[-1])


def check_served(engine: Engine, policy: Policy) -> None:
    """Refuse a policy in the engine's own words.

    Raises:
      ConfigurationError: the engine refuses the policy.
    """
    refusal = engine.refusal(policy)
    if refusal is not None:
        raise ConfigurationError(refusal)
