"""Rollouts that a test makes by hand, from what is recorded of each token by its path."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tutelage.types import Batch, Reading, Rollout


def rollout_of(
    prompt_tokens: Sequence[int],
    response_tokens: Sequence[int],
    behaviour_logprobs: Tensor,
    student_logprobs: Tensor,
    tokenwise: Mapping[str, Tensor] | None = None,
    **fields: Any,
) -> Rollout:
    """`tokenwise`: see `Rollout.with_tokenwise`."""
    bare = Rollout(list(prompt_tokens), list(response_tokens), behaviour_logprobs, Reading(student_logprobs), **fields)
    return bare.with_tokenwise(tokenwise or {})


def rated(rollouts: Sequence[Rollout]) -> Batch:
    """A batch of rollouts with rewards that differ within groups, and with a third model's reading of them."""
    rewards = torch.tensor([float(sum(rollout.response_tokens) % 3) for rollout in rollouts])
    read = [
        rollout.with_tokenwise({"reference.logprobs_T": 0.7 * rollout.student_logprobs - 0.1}) for rollout in rollouts
    ]
    return Batch(read, {"reward": rewards, "correct": (rewards > 0).float()})


def make_rollouts(seed: int = 0, lengths: tuple[int, ...] = (7, 1, 12, 5)) -> list[Rollout]:
    """Records as the engine keeps them, of random models with 9 tokens and a support of 4."""
    generator = torch.Generator().manual_seed(seed)
    rollouts = []
    for i, length in enumerate(lengths):
        student, teacher = (2 * torch.randn(2, length, 9, generator=generator)).log_softmax(-1)
        tokens = torch.multinomial(student.exp(), 1, generator=generator)
        kept = student.topk(4)
        rollouts.append(
            rollout_of(
                [0],
                tokens[:, 0].tolist(),
                student.gather(1, tokens)[:, 0],
                student.gather(1, tokens)[:, 0],
                {
                    "student.entropy_T": -(student.exp() * student).sum(-1),
                    "student.support_logprobs_TK": kept.values,
                    "teacher.logprobs_T": teacher.gather(1, tokens)[:, 0],
                    "teacher.entropy_T": -(teacher.exp() * teacher).sum(-1),
                    "teacher.support_logprobs_TK": teacher.gather(1, kept.indices),
                    "teacher.tail_logprobs_T": teacher.scatter(1, kept.indices, -math.inf).logsumexp(-1),
                    "support_ids": kept.indices.int(),
                },
                prompt_index=i // 2,
                sample_index=i % 2,
            )
        )
    return rollouts


KL_RADIUS = 0.02


def hand_made_rollouts(lengths=(1, 2, 3, 4, 5), seed=0):
    """Rollouts with every field filled; numbers are arbitrary but of the right sign and range."""
    generator = torch.Generator().manual_seed(seed)
    uniform = lambda *shape: torch.rand(*shape, generator=generator)  # noqa: E731
    rollouts = []
    for index, length in enumerate(lengths):
        blend = uniform(length)
        blend[0] = float(index % 2)  # exact zeros and ones
        student_TK, teacher_TK = (uniform(length, 3).log_softmax(-1) for _ in range(2))
        rollouts.append(
            rollout_of(
                [1, 2],
                [(3 * place) % 5 for place in range(length)],
                -uniform(length),
                -2 * uniform(length),
                {
                    "student.entropy_T": uniform(length),
                    "student.support_logprobs_TK": student_TK[:, :2],
                    "teacher.logprobs_T": -3 * uniform(length),
                    "teacher.entropy_T": uniform(length),
                    "teacher.support_logprobs_TK": teacher_TK[:, :2],
                    "teacher.tail_logprobs_T": teacher_TK[:, 2],
                    "reference.logprobs_T": -3 * uniform(length),
                    "support_ids": torch.zeros(length, 2, dtype=torch.long),
                    "support_is_shared": uniform(length, 2) < 0.6,
                    "blend": blend,
                    "kl_to_student": KL_RADIUS * uniform(length),
                    "replaced": uniform(length) < 0.3,
                    "rescored_logprobs": -uniform(length),
                },
                finished=index % 3 == 0,
                prompt_index=index,
                teacher_forwards=1 + length // 3,
            )
        )
    return rollouts
