"""The decode step as it is written, one operation after the other."""

from __future__ import annotations

from torch import Tensor

from tutelage.models.attention import without_plans
from tutelage.models.caches import KVCache
from tutelage.models.steps.base import DecodeStep

__all__ = ["EagerStep"]


class EagerStep(DecodeStep):
    """`forward.decode` itself."""

    def run(self, tokens_BT: Tensor, positions_BT: Tensor, cache: KVCache, num_visible: int) -> Tensor:
        """See `DecodeStep`."""
        with without_plans(tokens_BT.device):
            return self.forward.decode(tokens_BT, positions_BT, cache, num_visible)
