"""Batches of answers that a test makes from their rewards and lengths alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tests.support.rollouts import rollout_of
from tutelage.types import Batch


def group_batch(
    rewards: Sequence[float],
    lengths: Sequence[int] | None = None,
    group: int | None = None,
    student: Sequence[float] | None = None,
    behaviour: Sequence[float] | None = None,
) -> Batch:
    """Answers of so many tokens (1 each if left out), of which so many in a row have one prompt (all, if left out).

    Args:
      student, behaviour: log-probabilities of all tokens; -1 each if left out.
    """
    lengths = [1] * len(rewards) if lengths is None else lengths
    group = group or len(rewards)
    ones = [-1.0] * sum(lengths)
    of_student, of_behaviour = (
        torch.split(torch.tensor(ones if values is None else values, dtype=torch.float64), list(lengths))
        for values in (student, behaviour)
    )
    made = [
        rollout_of(
            [0],
            [1] * length,
            of_behaviour[place],
            of_student[place],
            prompt_index=place // group,
            sample_index=place % group,
        )
        for place, length in enumerate(lengths)
    ]
    values = torch.tensor(rewards, dtype=torch.float64)
    return Batch(made, {"reward": values, "correct": values})
