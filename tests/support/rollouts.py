"""Rollouts that a test makes by hand, from what is recorded of each token by its path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from tutelage.types import Reading, Rollout


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
