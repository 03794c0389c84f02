"""Captured decode steps against eager ones, on any device; without CUDA the captured function is called instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tests.support.tiny_models import make_model
from tutelage.models import LanguageModel
from tutelage.models.steps import GraphedStep
from tutelage.policies import Policy, Student, TrustRegion
from tutelage.rollout import Limits, PairedEngine
from tutelage.types import Rollout

PROMPTS = [[1, 2, 3], [4], [5, 6, 8, 9, 10, 11], [12, 13], [14, 15, 16, 17]]
# Beyond the slots that are reserved at first, so that caches grow; many answers end sooner, by token 7.
MAX_NEW_TOKENS = 90


def model(name: str, seed: int, device: str, dtype: torch.dtype = torch.float64, **settings: Any) -> LanguageModel:
    module = make_model(name, seed=seed, stop_ids=7, dtype=dtype).to(device)
    return LanguageModel(module, stop_ids=(7,), decode_step="graphed", **settings)


def answers(
    student: LanguageModel,
    teacher: LanguageModel | None,
    policy: Policy,
    draft_length: int = 1,
    max_rows: int = 4,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> list[Rollout]:
    """Refills (10 answers in 4 rows), rows that are dropped at the end, and drafts of which many are refused."""
    engine = PairedEngine(student, teacher, draft_length=draft_length, limits=Limits(max_rows=max_rows))
    return engine.generate(policy, PROMPTS, max_new_tokens=max_new_tokens, num_samples=2, seed=3)


def eager_answers(student: LanguageModel, teacher: LanguageModel | None, **settings: Any) -> list[Rollout]:
    """What nothing was captured for."""
    members = [each for each in (student, teacher) if each is not None]
    for each in members:
        each.decode_step = "eager"
    found = answers(student, teacher, policy_of(teacher), **settings)
    for each in members:
        each.decode_step = "graphed"
    return found


def policy_of(teacher: LanguageModel | None) -> Policy:
    return Student() if teacher is None else TrustRegion(0.05)


def assert_agree(student: LanguageModel, teacher: LanguageModel | None = None, **settings: Any) -> None:
    """The same tokens captured and eager, and the same records up to rounding."""
    found = answers(student, teacher, policy_of(teacher), **settings)
    assert_same(found, eager_answers(student, teacher, **settings))


def assert_same(found: list[Rollout], expected: list[Rollout]) -> None:
    assert [rollout.response_tokens for rollout in found] == [rollout.response_tokens for rollout in expected]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.behaviour_logprobs, other.behaviour_logprobs, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(one.student.entropy_T, other.student.entropy_T, rtol=1e-4, atol=1e-6)


def assert_models_take_turns(device: str, num_turns: int) -> None:
    """Two students and a teacher, alone and together, so that each finds what the others left."""
    first, second, teacher = (model("qwen3", seed, device) for seed in (0, 1, 2))
    turns = [(student, other) for student in (first, second) for other in (None, teacher)]
    lengths = [1 if other is None else 2 for _, other in turns]
    expected = [eager_answers(*turn, draft_length=length) for turn, length in zip(turns, lengths, strict=True)]
    for _ in range(num_turns):
        for turn, length, rollouts in zip(turns, lengths, expected, strict=True):
            assert_same(answers(*turn, policy_of(turn[1]), draft_length=length), rollouts)


def step_of(model: LanguageModel) -> GraphedStep:
    """The captured step of our own forward."""
    found = [step for step in model._steps.values() if isinstance(step, GraphedStep)]
    return found[-1]


def shapes_of(model: LanguageModel) -> set[tuple[int, int, int]]:
    """What was captured in the last rollout and is kept."""
    spare = step_of(model)._spare
    return set() if spare is None else set(spare.captured.replays)


def changed_in_place(model: LanguageModel) -> None:
    """As an optimizer changes weights."""
    with torch.no_grad():
        for weight in model.module.parameters():
            weight.mul_(0.9)


def moved(model: LanguageModel) -> None:
    """Other storage and other numbers."""
    for weight in model.module.parameters():
        weight.data = weight.data * 1.1


CHANGES: dict[str, Callable[[LanguageModel], None]] = {"in place": changed_in_place, "moved": moved}
