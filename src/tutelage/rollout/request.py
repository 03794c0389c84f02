"""What is an engine asked for?  So many answers to these prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tutelage.errors import ConfigurationError
from tutelage.types import Prompt

__all__ = ["Request"]


@dataclass(frozen=True)
class Request:
    """`num_samples` answers to each prompt, of at most `max_new_tokens` tokens.

    Fields:
      prompts: as student and teacher read them.
      max_new_tokens: length limit; the stop token counts.
      seed, step: with prompt, sample and place they key every draw, see `rollout.decoding.streams`.
      records_statistics: keep entropies and the teacher's view of the student's support. Off where only the tokens are
        wanted (evaluation).
    Raises:
      ConfigurationError: a number below 1.
    """

    prompts: Sequence[Prompt]
    max_new_tokens: int
    num_samples: int = 1
    seed: int = 0
    step: int = 0
    records_statistics: bool = True

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.num_samples < 1:
            raise ConfigurationError(
                f"max_new_tokens is {self.max_new_tokens} and num_samples is {self.num_samples}; both must be at least "
                "1."
            )

    @property
    def num_rollouts(self) -> int:
        """Answers to all prompts together."""
        return len(self.prompts) * self.num_samples
