"""The verifier's verdict as a reward."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage.rewards.base import Answers, Judge, Reward, Setting

__all__ = ["Correct"]


@dataclass(frozen=True)
class Correct(Reward):
    """1 for a right answer, 0 for a wrong one, as `data.verifier` decides. Nothing is judged twice."""

    @property
    def reads_verdict(self) -> bool:
        return True

    def opened(self, setting: Setting) -> Judge:
        return _verdicts


def _verdicts(answers: Answers) -> Tensor:
    assert answers.correct is not None, "a run whose answers are not judged was let through"
    return torch.tensor([float(bool(verdict)) for verdict in answers.correct], dtype=torch.float64)
