"""How much of a GPU's memory does a step take?"""

from __future__ import annotations

import torch

__all__ = ["PeakMemory"]


class PeakMemory:
    """The most memory that torch holds at once on a GPU from now on.

    Args:
      device: where; elsewhere than on CUDA nothing is counted.
    """

    def __init__(self, device: str) -> None:
        self.device = torch.device(device) if device.startswith("cuda") else None
        if self.device is not None:
            torch.cuda.reset_peak_memory_stats(self.device)

    def metrics(self) -> dict[str, float]:
        """`memory_gib`; nothing where nothing is counted."""
        if self.device is None:
            return {}
        return {"memory_gib": torch.cuda.max_memory_allocated(self.device) / 2**30}
