"""What comes after a token is to its credit, too."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["discounted_returns"]


def discounted_returns(rewards_N: Tensor, lengths: Sequence[int], discount: float) -> Tensor:
    """G_t = Σ_{s >= t} discount^(s - t) r_s within each answer: [N] -> [N].

    Args:
      lengths: tokens of the answers that are laid end to end.
    """
    return torch.cat([_of_answer(rewards_T, discount) for rewards_T in torch.split(rewards_N, list(lengths))])


def _of_answer(rewards_T: Tensor, discount: float) -> Tensor:
    returns, later = [], 0.0
    for reward in reversed(rewards_T.tolist()):
        later = reward + discount * later
        returns.append(later)
    return torch.tensor(returns[::-1], dtype=rewards_T.dtype)
