"""The loss's work on tiles as Triton kernels, for the generalised Jensen-Shannon family and forward and reverse KL.

Multiplications with the heads stay torch's; what is between them reads a tile once per pass here, where autograd would
write and read some twenty tensors of its size. A program holds one block of one row and leaves a few numbers, which
torch adds up. With m = b q + (1 - b) p, terms of an event and what `kernels.tiled_loss` calls g:

    b = 1          p (log p - log q)                                    p (log p - log q + 1)
    b = 0          q (log q - log p)                                    -q
    0 < b < 1      b q (log q - log m) + (1 - b) p (log p - log m)      (1 - b) p (log p - log m)

The last g leaves out a multiple of p, which has no part in g - p Σ g. Axis letters: as in `kernels.tiles`; P blocks.
"""

# Triton is optional, so its types may be absent; and a kernel is a language of its own, not typed Python.
# mypy: disable-error-code="import-not-found, untyped-decorator, no-untyped-def, no-untyped-call, misc"

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
import triton
import triton.language as tl
from torch import Tensor

from tutelage.distributions import wide_dtype
from tutelage.kernels.tile_divergence import TileDivergence
from tutelage.kernels.tiles import LOWEST_PEAK, TiledLogits
from tutelage.kernels.triton_kernels import MAX_BLOCK, NUM_WARPS, _load, _on

__all__ = ["TritonTileDivergence"]

LOWEST = tl.constexpr(LOWEST_PEAK)


class TritonTiledLogits(TiledLogits):
    """Logits whose log mass a kernel adds up."""

    def peak_and_mass(self, tile: slice, without_nK: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As of `TiledLogits`, in one read."""
        if without_nK is not None:
            return super().peak_and_mass(tile, without_nK)
        logits_nm = self.head_logits(tile)
        sums_2nP = _sums_buffer(logits_nm, wide_dtype(logits_nm))
        _launch(
            _mass_kernel,
            self,
            tile,
            logits_nm,
            logits_nm.stride(0),
            _stop_of(self, sums_2nP.dtype),
            _hidden_of(self, tile),
            logits_nm.shape[1],
            sums_2nP,
        )
        peaks_nP, masses_nP = sums_2nP
        peak_n = peaks_nP.amax(-1)
        return peak_n, (masses_nP * (peaks_nP - peak_n[:, None]).exp()).sum(-1)


class TritonTileDivergence(TileDivergence):
    """Two models on a tile; `FullDivergence.jsd_share` says which divergence."""

    logits_class: ClassVar[type[TiledLogits]] = TritonTiledLogits

    def sums(self, tile: slice) -> tuple[Tensor, Tensor]:
        """As of `TileDivergence`."""
        sums_2nP = _sums_buffer(self.student.head_logits(tile), self._dtype(tile))
        nothing_n = self.student_mass.peak_n
        self._launch(tile, nothing_n, nothing_n, sums_2nP)
        value_n, slope_n = sums_2nP.sum(-1)
        return value_n, slope_n

    def gradient(self, tile: slice, slope_n: Tensor, weights_n: Tensor) -> Tensor:
        """As of `TileDivergence`; in the hidden states' type, which multiplies it, where nothing comes between."""
        dtype = self._dtype(tile)
        narrow = self.student.hidden_nD.dtype if self.student.head.softcap is None else dtype
        gradient_nm = torch.empty_like(self.student.head_logits(tile), dtype=narrow)
        self._launch(tile, slope_n.to(dtype), weights_n.to(dtype), gradient_nm)
        return gradient_nm

    def _dtype(self, tile: slice) -> torch.dtype:
        return wide_dtype(self.student.head_logits(tile), self.target.head_logits(tile))

    def _launch(self, tile: slice, slope_n: Tensor, weights_n: Tensor, found: Tensor) -> None:
        share, dtype = self.divergence.jsd_share, self._dtype(tile)
        assert share is not None
        student_nm, target_nm = self.student.head_logits(tile), self.target.head_logits(tile)
        _launch(
            _divergence_kernel,
            self.student,
            tile,
            student_nm,
            student_nm.stride(0),
            _stop_of(self.student, dtype),
            target_nm,
            target_nm.stride(0),
            _stop_of(self.target, dtype),
            _hidden_of(self.student, tile),
            torch.stack([*self.student_mass, *self.target_mass]).to(dtype),
            slope_n,
            weights_n,
            student_nm.shape[1],
            found,
            IS_GRADIENT=found.dim() == 2,
            SHARE=share,
            LOG_SHARE=math.log(share) if share > 0 else 0.0,
            LOG_REST=math.log1p(-share) if share < 1 else 0.0,
            IS_DOUBLE=dtype == torch.float64,
        )


def _launch(kernel: Any, logits: TiledLogits, tile: slice, *arguments: Tensor | int, **constants: object) -> None:
    logits_nm, place = logits.head_logits(tile), logits.view.place_of_stop(tile)
    num_rows, num_columns = logits_nm.shape
    with _on(logits_nm):
        kernel[(num_rows, triton.cdiv(num_columns, _block(num_columns)))](
            *arguments,
            HAS_HIDDEN=logits.view.is_hidden_V is not None,
            STOP_PLACE=-1 if place is None else place,
            BLOCK=_block(num_columns),
            num_warps=NUM_WARPS,
            **{"IS_DOUBLE": logits_nm.dtype == torch.float64, **constants},
        )


def _block(num_columns: int) -> int:
    return int(min(MAX_BLOCK, max(16, triton.next_power_of_2(num_columns))))


def _sums_buffer(logits_nm: Tensor, dtype: torch.dtype) -> Tensor:
    """Two numbers for every block of every row, [2, n, P]."""
    num_rows, num_columns = logits_nm.shape
    return torch.empty(2, num_rows, triton.cdiv(num_columns, _block(num_columns)), dtype=dtype, device=logits_nm.device)


def _stop_of(logits: TiledLogits, dtype: torch.dtype) -> Tensor:
    """The merged stop event, [n]; what stands there without one is not read."""
    return logits.hidden_nD if logits.stop_n is None else logits.stop_n.to(dtype)


def _hidden_of(logits: TiledLogits, tile: slice) -> Tensor:
    """1 where an id has no event of its own, [m]; what stands there without such ids is not read."""
    is_hidden_V = logits.view.is_hidden_V
    return logits.hidden_nD if is_hidden_V is None else is_hidden_V[tile].view(torch.uint8)


@triton.jit
def _shared_logits(
    pointer,
    row,
    stride,
    places,
    num_columns,
    stop_pointer,
    hidden_pointer,
    HAS_HIDDEN: tl.constexpr,
    STOP_PLACE: tl.constexpr,
    IS_DOUBLE: tl.constexpr,
):
    """A block of shared logits; -inf beyond the last column."""
    values = _load(pointer, row, stride, places, num_columns, IS_DOUBLE)
    if HAS_HIDDEN:
        is_hidden = tl.load(hidden_pointer + places, mask=places < num_columns, other=1)
        values = tl.where(is_hidden == 1, -float("inf"), values)
    if STOP_PLACE >= 0:
        values = tl.where(places == STOP_PLACE, tl.load(stop_pointer + row), values)
    return values


@triton.jit
def _mass_kernel(
    pointer,
    stride,
    stop_pointer,
    hidden_pointer,
    num_columns,
    sums_pointer,
    HAS_HIDDEN: tl.constexpr,
    STOP_PLACE: tl.constexpr,
    BLOCK: tl.constexpr,
    IS_DOUBLE: tl.constexpr,
):
    """Peak of a block, and its mass relative to that."""
    row, block = tl.program_id(0), tl.program_id(1)
    places = block * BLOCK + tl.arange(0, BLOCK)
    values = _shared_logits(
        pointer, row, stride, places, num_columns, stop_pointer, hidden_pointer, HAS_HIDDEN, STOP_PLACE, IS_DOUBLE
    )
    peak = tl.maximum(tl.max(values, 0), LOWEST)
    place = sums_pointer + row * tl.num_programs(1) + block
    tl.store(place, peak)
    tl.store(place + tl.num_programs(0) * tl.num_programs(1), tl.sum(tl.exp(values - peak), 0))


@triton.jit
def _terms(log_p, log_q, SHARE: tl.constexpr, LOG_SHARE: tl.constexpr, LOG_REST: tl.constexpr):
    """p, and of every event its term and g; see the module."""
    lacks_p = log_p == -float("inf")
    lacks_q = log_q == -float("inf")
    p, q = tl.exp(log_p), tl.exp(log_q)
    # Finite stand-ins, so that nothing meets 0 times inf.
    safe_p, safe_q = tl.where(lacks_p, 0.0, log_p), tl.where(lacks_q, 0.0, log_q)
    is_edge = lacks_p | lacks_q
    if SHARE == 1.0:
        gain = tl.where(is_edge, 0.0, p * (safe_p - safe_q))
        term = tl.where(lacks_q & (log_p > -float("inf")), float("inf"), gain)
        slope = tl.where(is_edge, 0.0, gain + p)
    elif SHARE == 0.0:
        term = tl.where(is_edge, 0.0, q * (safe_q - safe_p))
        term = tl.where(lacks_p & (log_q > -float("inf")), float("inf"), term)
        slope = tl.where(is_edge, 0.0, -q)
    else:
        mixed_p, mixed_q = log_p + LOG_REST, log_q + LOG_SHARE
        upper, lower = tl.maximum(mixed_p, mixed_q), tl.minimum(mixed_p, mixed_q)
        upper = tl.where(upper == -float("inf"), 0.0, upper)
        log_m = upper + tl.log(1.0 + tl.exp(lower - upper))
        slope = tl.where(lacks_p, 0.0, (1.0 - SHARE) * p * (safe_p - log_m))
        term = slope + tl.where(lacks_q, 0.0, SHARE * q * (safe_q - log_m))
    return p, term, slope


@triton.jit
def _divergence_kernel(
    student_pointer,
    student_stride,
    student_stop_pointer,
    target_pointer,
    target_stride,
    target_stop_pointer,
    hidden_pointer,
    masses_pointer,
    slope_pointer,
    weights_pointer,
    num_columns,
    found_pointer,
    IS_GRADIENT: tl.constexpr,
    SHARE: tl.constexpr,
    LOG_SHARE: tl.constexpr,
    LOG_REST: tl.constexpr,
    HAS_HIDDEN: tl.constexpr,
    STOP_PLACE: tl.constexpr,
    BLOCK: tl.constexpr,
    IS_DOUBLE: tl.constexpr,
):
    """Of a block: sums of terms and of g, or w (g - p Σ g)."""
    row, block = tl.program_id(0), tl.program_id(1)
    num_rows, num_blocks = tl.num_programs(0), tl.num_programs(1)
    places = block * BLOCK + tl.arange(0, BLOCK)
    student = _shared_logits(
        student_pointer,
        row,
        student_stride,
        places,
        num_columns,
        student_stop_pointer,
        hidden_pointer,
        HAS_HIDDEN,
        STOP_PLACE,
        IS_DOUBLE,
    )
    target = _shared_logits(
        target_pointer,
        row,
        target_stride,
        places,
        num_columns,
        target_stop_pointer,
        hidden_pointer,
        HAS_HIDDEN,
        STOP_PLACE,
        IS_DOUBLE,
    )
    masses = masses_pointer + row
    log_p = (student - tl.load(masses)) - tl.load(masses + num_rows)
    log_q = (target - tl.load(masses + 2 * num_rows)) - tl.load(masses + 3 * num_rows)
    p, term, slope = _terms(log_p, log_q, SHARE, LOG_SHARE, LOG_REST)
    if IS_GRADIENT:
        weight = tl.load(weights_pointer + row)
        gradient = weight * (slope - p * tl.load(slope_pointer + row))
        # What does not count must not count when it is infinite either.
        gradient = tl.where(weight == 0.0, 0.0, gradient)
        place = found_pointer + row.to(tl.int64) * num_columns + places
        tl.store(place, gradient.to(found_pointer.dtype.element_ty), mask=places < num_columns)
    else:
        place = found_pointer + row * num_blocks + block
        tl.store(place, tl.sum(term, 0))
        tl.store(place + num_rows * num_blocks, tl.sum(slope, 0))
