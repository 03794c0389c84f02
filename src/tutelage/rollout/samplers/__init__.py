"""Which other programs draw answers from the student alone?"""

from collections.abc import Callable

from tutelage.rollout.samplers.base import Capacity, HostedSettings, SampledAnswer, Sampler, SamplingParams
from tutelage.rollout.samplers.vllm import LocalVLLM, ServedVLLM, vllm_sampler

__all__ = [
    "SAMPLERS",
    "Capacity",
    "HostedSettings",
    "LocalVLLM",
    "SampledAnswer",
    "Sampler",
    "SamplingParams",
    "ServedVLLM",
]

SAMPLERS: dict[str, Callable[[HostedSettings, Capacity], Sampler]] = {"vllm": vllm_sampler}
"""How a sampler is made, by the name that `rollout.engine` has for it."""
