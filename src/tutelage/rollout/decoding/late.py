"""What the host asks of a device without making it wait: numbers that are on their way, and times."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["HostCopy", "Marks", "rounds_late", "unpacked"]


def rounds_late(device: torch.device) -> int:
    """How many rounds the host is behind a device that works on its own."""
    return 1 if device.type == "cuda" else 0


class HostCopy:
    """Whole numbers or flags, [B] or [B, L], that are being copied to the host; from a CPU, the tensors themselves."""

    def __init__(self, *tensors: Tensor) -> None:
        self._tensors = tensors
        self._is_there: torch.cuda.Event | None = None
        if tensors[0].is_cuda:
            packed = torch.column_stack(tensors)  # each copy has a price
            # Only a copy into pinned memory leaves the host free.
            self._packed = torch.empty_like(packed, device="cpu", pin_memory=True)
            self._packed.copy_(packed, non_blocking=True)
            self._is_there = torch.cuda.current_stream(packed.device).record_event()

    def wait(self) -> tuple[Tensor, ...]:
        """The numbers, once they are there."""
        if self._is_there is None:
            return self._tensors
        self._is_there.synchronize()
        return unpacked(self._packed, self._tensors)


def unpacked(columns: Tensor, like: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The tensors whose columns these are, in their shapes and types."""
    pieces = torch.split(columns, [each.shape[1] if each.ndim > 1 else 1 for each in like], dim=1)
    return tuple(piece.reshape(each.shape).to(each.dtype) for piece, each in zip(pieces, like, strict=True))


class Marks:
    """Moments of a device's work.

    Args:
      device: whose work; None = nobody will ask.
    """

    def __init__(self, device: torch.device | None) -> None:
        self._device = device
        self._moments: list[Any] = []

    def add(self) -> None:
        """Mark the moment at which all that was asked of the device so far is done."""
        if self._device is None:
            return
        if self._device.type == "cuda":
            event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(self._device))
            self._moments.append(event)
        else:
            self._moments.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Seconds from each moment to the next; all must have come."""
        pairs = zip(self._moments, self._moments[1:], strict=False)
        return [
            other - one if isinstance(one, float) else one.elapsed_time(other) / 1000  # which are milliseconds
            for one, other in pairs
        ]
