"""Linear attention imitates the softmax attention that it replaced, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage.losses.base import LayerLoss

__all__ = ["AttentionTransfer"]

TINY = 1e-6  # an output that is 0 has nothing to be relative to


@dataclass(frozen=True)
class AttentionTransfer(LayerLoss):
    """Mean over layers of |Y - Ŷ| / |Y|, the relative error of attention's output.

    Y is what the teacher's attention gives after its output projection, Ŷ what the student's linear attention gives for
    the same inputs, norms over the width (second stage of MOHAWK, arXiv 2408.10189; first step of RADLADS, arXiv
    2505.03005). The error is relative since the layers' scales differ by more than a hundred; here of each token, so
    that it does not depend on how a batch is cut up.
    """

    def on_layers(self, student_MNE: Tensor, teacher_MNE: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm
        error_MN: Tensor = norm(teacher_MNE - student_MNE, dim=-1) / norm(teacher_MNE, dim=-1).clamp_min(TINY)
        return error_MN.mean(0)
