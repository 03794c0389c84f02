"""What a sampler is: another program that holds a copy of the student and draws answers from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tutelage.errors import ConfigurationError
from tutelage.rollout.servers import DEFAULT_RETRIES, DEFAULT_TIMEOUT_SECONDS, ServedModel

__all__ = ["Capacity", "HostedSettings", "SampledAnswer", "Sampler", "SamplingParams"]


@dataclass(frozen=True)
class HostedSettings:
    """[vllm]: where the answers of the student alone are drawn, and how far the sampler may differ from us.

    Fields:
      server: address of a server that holds the student; None = the sampler is started beside this process.
      dtype: that a sampler computes in, when it is started here.
      memory_share: of the device's memory that it takes then.
      options: further arguments then, of `vllm.LLM` for vLLM.
      weights_folder: where each step's weights are written for the sampler; a server must see it under the same path.
        None = a temporary folder.
      tolerance, tolerance_max: nats that log-probabilities of the sampler and ours may differ, on average and for any
        single token.
      timeout_seconds, retries: of requests to the server.
    """

    server: str | None = None
    dtype: str = "bfloat16"
    memory_share: float = 0.3
    options: dict[str, Any] | None = None
    weights_folder: str | None = None
    tolerance: float = 0.1
    tolerance_max: float = 2.0
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS
    retries: int = DEFAULT_RETRIES

    def __post_init__(self) -> None:
        if not 0 < self.memory_share < 1:
            raise ConfigurationError(
                f"vllm.memory_share is {self.memory_share:g}; expected a share between 0 and 1. Use 0.3."
            )
        if self.tolerance <= 0 or self.tolerance_max <= 0:
            raise ConfigurationError(
                f"vllm.tolerance is {self.tolerance:g} and vllm.tolerance_max {self.tolerance_max:g}; expected nats "
                "above 0. Leave them out for the defaults."
            )


@dataclass(frozen=True)
class Capacity:
    """What a sampler must hold.

    Fields:
      max_tokens: most tokens of a prompt with its answer.
      max_rows: most answers at once.
      device: type of the student's device, such as "cuda".
    """

    max_tokens: int
    max_rows: int
    device: str


@dataclass(frozen=True)
class SamplingParams:
    """How answers are drawn.

    Fields:
      temperature: 0 = greedy.
      max_new_tokens: length limit, stop token included.
      stop_ids: each of them ends an answer, and nothing else does.
      forbidden_ids: ids that are no tokens.
    """

    temperature: float
    max_new_tokens: int
    stop_ids: tuple[int, ...]
    forbidden_ids: tuple[int, ...]


@dataclass(frozen=True)
class SampledAnswer:
    """One answer as it was drawn.

    Fields:
      tokens: ids, the stop token included; at least one.
      logprobs: of each, as it was drawn.
      last_logprobs: log-probabilities of the stop ids at the last place.
    """

    tokens: Sequence[int]
    logprobs: Sequence[float]
    last_logprobs: Mapping[int, float]


class Sampler(Protocol):
    """Draws answers from a copy of the student's weights.

    Raises:
      ServerError: it is gone, or what it says makes no sense.
    """

    def check(self, prompt: Sequence[int], num_tokens: int) -> ServedModel | None:
        """Find out before anything is computed whether it can do what a run asks.

        Args:
          prompt: that an answer may begin with.
          num_tokens: of the longest prompt with its answer.
        Returns:
          what a server says about its model; None where there is no server to ask.
        """

    def load(self, folder: Path) -> None:
        """Take the weights of a model folder, and forget what older ones made."""

    def sample(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], params: SamplingParams
    ) -> list[SampledAnswer]:
        """An answer to each prompt, with a seed of its own."""
