"""The caches of several models that read the same tokens side by side."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tutelage.models.caches.base import CachedRows

__all__ = ["JointCache"]


class JointCache(CachedRows):
    """One cache per model; their rows are moved together."""

    def __init__(self, parts: Sequence[CachedRows]) -> None:
        self.parts = list(parts)

    def select(self, rows_B: Tensor) -> None:
        """See `CachedRows`."""
        for part in self.parts:
            part.select(rows_B)

    def roll_back(self, lengths_B: Tensor) -> None:
        """See `CachedRows`."""
        for part in self.parts:
            part.roll_back(lengths_B)

    def copy_rows(self, source: CachedRows, source_rows_R: Tensor, rows_R: Tensor) -> None:
        """See `CachedRows`."""
        assert isinstance(source, JointCache)
        for part, other in zip(self.parts, source.parts, strict=True):
            part.copy_rows(other, source_rows_R, rows_R)
