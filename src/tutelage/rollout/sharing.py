"""A batch of prompts cut into shares, one per process; together the answers are those of the whole batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from tutelage.policies import Policy
from tutelage.rollout.engines import Engine
from tutelage.rollout.request import Request
from tutelage.types import Rollout

__all__ = ["MapShards", "answers_to_share", "single_process", "without_hidden"]

T = TypeVar("T")

MapShards = Callable[[int, Callable[[slice], list[T]]], list[T]]
"""(count, work) -> what the work of all processes, each on its share of `count` things, comes to"""


def single_process(count: int, work: Callable[[slice], list[T]]) -> list[T]:
    """What a process that is alone does: all of it."""
    return work(slice(0, count))


def answers_to_share(engine: Engine, policy: Policy, request: Request, share: slice) -> list[Rollout]:
    """Answers to some of a request's prompts, with the tokens and numbers that they have when all are answered at once.

    Args:
      share: which prompts.
    """
    prompts = request.prompts
    own = [replace(p, stream=p.stream_at(place)) for place, p in enumerate(prompts)][share]
    made = engine.answer(policy, replace(request, prompts=own))
    return [replace(rollout, prompt_index=share.start + rollout.prompt_index) for rollout in made]


def without_hidden(rollout: Rollout) -> Rollout:
    """The rollout without hidden states, which are large and stay where the loss needs them."""
    teacher = rollout.teacher
    return rollout if teacher is None else replace(rollout, teacher=replace(teacher, hidden_TD=None))
