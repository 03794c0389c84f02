"""A language-model head under which an answer ends at every token with the same probability.

Lengths are then geometric whatever the model says, and have one law for every engine that samples from it: what is
compared is how engines cope with ragged lengths. Works wherever a head is called as a module; costs everybody the same.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class ConstantHazardHead(nn.Module):
    """Overrides the stop token's logit so that its probability is `stop_probability`.

    p(stop) = h exactly if  logit_stop = logsumexp(other logits) + log(h / (1 - h))
    """

    def __init__(self, head: nn.Module, stop_id: int, stop_probability: float) -> None:
        super().__init__()
        self.head, self.stop_id = head, stop_id
        self.offset = math.log(stop_probability / (1 - stop_probability))

    @property
    def weight(self) -> Tensor:
        """The head's own weight, which engines ask for its device and size."""
        weight = self.head.weight
        assert isinstance(weight, Tensor)
        return weight

    def forward(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.head(hidden)
        logits = logits.index_fill(-1, torch.tensor([self.stop_id], device=logits.device), -math.inf)
        stop = logits.logsumexp(-1, keepdim=True) + self.offset
        return logits.index_copy(-1, torch.tensor([self.stop_id], device=logits.device), stop)
