"""What the rewards of a step say about its groups, the answers to one prompt: is there something to learn, and where?

Axis letters: B answers, N tokens of all answers laid end to end, P groups.
"""

from __future__ import annotations

from statistics import fmean

import torch
from torch import Tensor

from tutelage.advantages.groups import group_means, on_tokens
from tutelage.evaluation import pass_at_k
from tutelage.types import Batch

__all__ = ["DIFFICULTIES", "advantages_by_difficulty", "group_metrics", "zero_spread_share"]

DIFFICULTIES = ("unsolved", "hard", "easy", "solved")
"""Groups by the share of their answers that are right: 0, up to 1/2, above 1/2, 1."""
MAX_TRIES = 64  # largest k of pass@k


def group_metrics(batch: Batch) -> dict[str, float]:
    """Metrics of groups of two or more answers, see `diagnostics.METRICS`; a group of one is left out.

    Pass@k is that of the policy which drew the answers, at powers of two up to the size of the smallest group.
    """
    metrics = {}
    if "reward" in batch.rewards and (share := zero_spread_share(batch, batch.rewards["reward"])) is not None:
        metrics["zero_spread_share"] = share
    groups = _of_groups(batch, _is_right(batch)) if "correct" in batch.rewards else []
    if not groups:
        return metrics
    sizes_P, num_right_P = torch.tensor([len(each) for each in groups]), torch.tensor([sum(each) for each in groups])
    bins_P = _difficulties(num_right_P.double() / sizes_P)
    for place, name in enumerate(DIFFICULTIES):
        metrics[f"group_share_{name}"] = float((bins_P == place).double().mean())
    tries = [2**power for power in range(int(sizes_P.min()).bit_length())]
    for k in (k for k in tries if k <= MAX_TRIES):
        metrics[f"train_pass_at_{k}"] = float(pass_at_k(sizes_P.numpy(), num_right_P.numpy(), k).mean())
    return metrics


def zero_spread_share(batch: Batch, rewards_B: Tensor) -> float | None:
    """Share of the groups whose rewards are all equal; None where no prompt has two answers."""
    flat = [len(set(rewards)) == 1 for rewards in _of_groups(batch, rewards_B)]
    return fmean(flat) if flat else None


def advantages_by_difficulty(batch: Batch, advantages_N: Tensor) -> dict[str, float]:
    """Mean |A| over the tokens of groups of each difficulty; what has no token, or no verdict, is left out."""
    if "correct" not in batch.rewards:
        return {}
    bins_N = on_tokens(_difficulties(group_means(_is_right(batch).double(), batch.prompts_B)), batch)
    found = {name: advantages_N[bins_N == place].abs() for place, name in enumerate(DIFFICULTIES)}
    return {f"advantage_{name}": float(values.double().mean()) for name, values in found.items() if len(values)}


def _is_right(batch: Batch) -> Tensor:
    return batch.rewards["correct"] > 0


def _difficulties(solved: Tensor) -> Tensor:
    """Which of `DIFFICULTIES` a share of right answers is."""
    return (solved > 0).long() + (solved > 0.5).long() + (solved >= 1).long()


def _of_groups(batch: Batch, values_B: Tensor) -> list[list[float]]:
    """A number of each answer, group by group; a group of one is left out."""
    groups: dict[int, list[float]] = {}
    for prompt, value in zip(batch.prompts_B.tolist(), values_B.tolist(), strict=True):
        groups.setdefault(prompt, []).append(value)
    return [values for values in groups.values() if len(values) > 1]
