"""The student at another temperature: the warm-up that needs no teacher, and greedy decoding."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage.distributions import kl_divergence, normalise
from tutelage.policies.base import Policy, Proposal, plain_number, refuse_negative
from tutelage.policies.student import Student
from tutelage.schedules import Schedule

__all__ = ["Temperature"]


@dataclass(frozen=True)
class Temperature(Policy):
    """mu ∝ p^(1 / temperature). The temperature warm-up of arXiv 2605.31159 rises from 0.8-0.95 to 1.

    Fields:
      temperature: >= 0. At 1 this is the student; at 0 all mass is on the most probable token, the first among equals.
    """

    temperature: float | Schedule

    def __post_init__(self) -> None:
        refuse_negative(
            self.temperature,
            "policy.temperature",
            "a temperature cannot be negative. Use 0 for greedy decoding, 1 for the student itself.",
        )

    @property
    def needs_teacher(self) -> bool:
        return False

    def at(self, step: int) -> Policy:
        policy = super().at(step)
        return Student() if policy == Temperature(1) else policy

    def __call__(self, student_logits_BV: Tensor, teacher_logits_BV: Tensor | None = None) -> Proposal:
        temperature = plain_number(self.temperature, "policy.temperature")
        student_BV = normalise(student_logits_BV)
        logprobs_BV = _greedy(student_BV) if temperature == 0 else _tempered(student_BV, temperature)
        return Proposal(logprobs_BV, {"kl_to_student": kl_divergence(logprobs_BV, student_BV)})


def _tempered(logprobs_BV: Tensor, temperature: float) -> Tensor:
    # The peak is moved to 0 first: divided by a tiny temperature it would overflow, and take the whole row with it.
    return normalise((logprobs_BV - logprobs_BV.amax(-1, keepdim=True)) / temperature)


def _greedy(logprobs_BV: Tensor) -> Tensor:
    token_B1 = logprobs_BV.argmax(-1, keepdim=True)
    peak_B1 = logprobs_BV.gather(-1, token_B1)
    # peak - peak is 0, and NaN for a row without mass, which must not turn into a certainty
    return torch.full_like(logprobs_BV, -math.inf).scatter(-1, token_B1, peak_B1 - peak_B1)
