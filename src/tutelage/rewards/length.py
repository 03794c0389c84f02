"""Rewards that look at an answer's length only, in tokens of the student, stop token included."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tutelage.errors import ConfigurationError
from tutelage.rewards.base import Answers, Judge, Reward, Setting

__all__ = ["Length", "Overlong"]

# DAPO's 4096 of 16384 + 4096 tokens.
CACHE_SHARE = 0.2


@dataclass(frozen=True)
class Length(Reward):
    """r = min(T / scale, 1): long answers are worth more; with a weight below 0, less.

    Fields:
      scale_tokens: the length from which on it is 1; None = `rollout.max_new_tokens`.
    """

    scale_tokens: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_tokens(self.scale_tokens, "scale_tokens")

    def opened(self, setting: Setting) -> Judge:
        scale = self.scale_tokens or setting.max_new_tokens
        return lambda answers: (_lengths(answers) / scale).clamp(max=1.0)


@dataclass(frozen=True)
class Overlong(Reward):
    """DAPO's soft punishment of answers near the length limit M, with a cache of c tokens before it.

        r = 0                        T <= M - c
        r = -(T - (M - c)) / c       M - c < T <= M
        r = -1                       T > M                           (arXiv 2503.14476, equation 13)

    Fields:
      max_tokens: M; None = `rollout.max_new_tokens`.
      cache_tokens: c; None = a fifth of M, as in DAPO, and 1 at least.
    """

    max_tokens: int | None = None
    cache_tokens: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_tokens(self.max_tokens, "max_tokens")
        _check_tokens(self.cache_tokens, "cache_tokens")

    def check(self, setting: Setting) -> dict[str, Any]:
        limit, cache = self._bounds(setting)
        if cache > limit:
            raise ConfigurationError(
                f"reward.cache_tokens is {cache}, more than the {limit} tokens of reward.max_tokens, so every answer "
                "would be too long. Lower it."
            )
        return {}

    def opened(self, setting: Setting) -> Judge:
        self.check(setting)
        limit, cache = self._bounds(setting)
        return lambda answers: ((limit - cache - _lengths(answers)) / cache).clamp(-1.0, 0.0)

    def _bounds(self, setting: Setting) -> tuple[int, int]:
        limit = self.max_tokens or setting.max_new_tokens
        return limit, self.cache_tokens or max(1, int(CACHE_SHARE * limit))


def _lengths(answers: Answers) -> Tensor:
    return torch.tensor([len(rollout) for rollout in answers.rollouts], dtype=torch.float64)


def _check_tokens(number: int | None, name: str) -> None:
    if number is not None and number < 1:
        raise ConfigurationError(f"reward.{name} is {number}; expected 1 token or more. Leave it out for the default.")
