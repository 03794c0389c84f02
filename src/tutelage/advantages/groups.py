"""Numbers of answers, compared with those of the other answers to the same prompt.

Axis letters: B answers, N tokens of all answers laid end to end.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tutelage.errors import ConfigurationError
from tutelage.types import Batch

__all__ = ["group_means", "group_sizes", "group_sums", "on_tokens", "reward_named"]


def reward_named(batch: Batch, name: str) -> Tensor:
    """One reward of every answer, [B], in float64.

    Raises:
      ConfigurationError: the batch has no such reward.
    """
    if name not in batch.rewards:
        known = ", ".join(batch.rewards) or "none"
        raise ConfigurationError(
            f"an advantage reads the reward {name!r}, which the answers do not have; known: {known}. Add a [[reward]] "
            "of that name, or name another one."
        )
    return batch.rewards[name].double()


def group_sums(values_B: Tensor, batch: Batch) -> Tensor:
    """For each answer the sum over all answers to its prompt, [B]."""
    prompts_B = batch.prompts_B
    totals = values_B.new_zeros(int(prompts_B.max()) + 1 if len(prompts_B) else 0)
    return totals.index_add(0, prompts_B, values_B)[prompts_B]


def group_sizes(batch: Batch) -> Tensor:
    """For each answer the number of answers to its prompt, [B], in float64."""
    return group_sums(torch.ones(len(batch.rollouts), dtype=torch.float64), batch)


def group_means(values_B: Tensor, batch: Batch) -> Tensor:
    """For each answer the mean over all answers to its prompt, [B]."""
    return group_sums(values_B, batch) / group_sizes(batch)


def on_tokens(values_B: Tensor, batch: Batch) -> Tensor:
    """The number of its answer for each token, [N]."""
    return values_B.repeat_interleave(torch.tensor(batch.lengths))
