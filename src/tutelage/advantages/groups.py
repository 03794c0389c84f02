"""Numbers of answers, compared with those of the other answers to the same prompt.

Axis letters: B answers, N tokens of all answers laid end to end. What is compared by `group_...` may be tokens, too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tutelage.errors import ConfigurationError
from tutelage.types import Batch

__all__ = ["group_deviations", "group_means", "group_sizes", "group_sums", "on_tokens", "reward_named"]


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


def group_sums(values_B: Tensor, groups_B: Tensor) -> Tensor:
    """For each answer the sum over all answers of its group, [B].

    Args:
      groups_B: the same number for answers to the same prompt.
    """
    _, places_B = torch.unique(groups_B, return_inverse=True)
    return values_B.new_zeros(len(groups_B)).index_add(0, places_B, values_B)[places_B]


def group_sizes(groups_B: Tensor) -> Tensor:
    """For each answer the number of answers of its group, [B], in float64."""
    return group_sums(torch.ones(len(groups_B), dtype=torch.float64), groups_B)


def group_means(values_B: Tensor, groups_B: Tensor) -> Tensor:
    """For each answer the mean over its group, [B]."""
    return group_sums(values_B, groups_B) / group_sizes(groups_B)


def group_deviations(values_B: Tensor, groups_B: Tensor) -> Tensor:
    """For each answer the sample deviation of its group, [B]; 0 in groups of one."""
    squares_B = (values_B - group_means(values_B, groups_B)) ** 2
    return (group_sums(squares_B, groups_B) / (group_sizes(groups_B) - 1).clamp_min(1)).sqrt()


def on_tokens(values_B: Tensor, batch: Batch) -> Tensor:
    """The number of its answer for each token, [N]."""
    return values_B.repeat_interleave(torch.tensor(batch.lengths))
