"""The loss's work between the products with the heads, as Triton kernels: every entry of a block's logits is kept once.

    scan        a float32 tile of one model's logits, fresh from its product: log mass, single logits, and the tile in
                half the bytes, less a number per row that is near its peak
    divergence  both models' rows: sums of terms and of what `kernels.tiled_loss` calls g
    gradient    the same again, written over the student's logits; or, on a support, over those of the rest

Terms and g of an event, with m = b q + (1 - b) p:

    b = 1          p (log p - log q)                                    p (log p - log q + 1)
    b = 0          q (log q - log p)                                    -q
    0 < b < 1      b q (log q - log m) + (1 - b) p (log p - log m)      (1 - b) p (log p - log m)

The last g leaves out a multiple of p, which has no part in g - p Σ g. Axis letters: as in `kernels.tiles`; P columns
of what is kept, a few more than the vocabulary has; in sums, parts of a row.
"""

# Triton is optional, so its types may be absent; and a kernel is a language of its own, not typed Python.
# mypy: disable-error-code="import-not-found, untyped-decorator, no-untyped-def, no-untyped-call, misc"

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import triton
import triton.language as tl
from torch import Tensor

from tutelage.distributions import wide_dtype
from tutelage.kernels.head_gradient import product
from tutelage.kernels.tile_divergence import TileDivergence
from tutelage.kernels.tiles import LOWEST_PEAK, Head, LogMass, TiledLogits, VocabularyView, softcapped, uncapped
from tutelage.kernels.triton_rows import MAX_BLOCK, NUM_WARPS, _load_block, _on, _row_of

__all__ = ["TritonLogits", "TritonTileDivergence"]

# Entries of a float32 tile: with the rows of the head that are read for them they should stay in an L2 cache of 50 MB,
# from which the next kernel reads them, and there should be few, since each costs the host two launches.
SCANNED_ENTRIES = 2**22

# Entries.
ALIGNED = 64

LOWEST = tl.constexpr(LOWEST_PEAK)
LARGEST_HALF = tl.constexpr(65504.0)


class TritonLogits(TiledLogits):
    """Shared logits of one model at a block of tokens, each row less a number of its own: only differences matter.

    They are kept in the bytes of the hidden states' type. That is half precision for bfloat16 as well: it has three
    digits more, and near a row's peak, which is near 0, these are what a gradient needs.
    """

    is_whole: ClassVar[bool] = True

    def __init__(self, head: Head, view: VocabularyView, hidden_nD: Tensor, keeps: bool) -> None:
        assert keeps, "logits that are computed again in every pass have no kernels"
        device = hidden_nD.device.type
        if torch.is_autocast_enabled(device):
            hidden_nD = hidden_nD.to(torch.get_autocast_dtype(device))
        super().__init__(head, view, hidden_nD, keeps)
        self.shift_n: Tensor
        self.kept_nP: Tensor | None = None
        self._slopes_nK: Tensor  # of the capped logits that `scan` picks

    def wide_logits(self, ids_S: Tensor) -> Tensor:
        """As of `TiledLogits`, and not rounded in between."""
        weight_VD, bias_V, softcap = self.head
        logits_nS = self.hidden_nD.new_empty(len(self.hidden_nD), len(ids_S), dtype=wide_dtype(self.hidden_nD))
        product(self.hidden_nD, weight_VD[ids_S].to(self.hidden_nD.dtype).T, logits_nS)
        return softcapped(logits_nS if bias_V is None else logits_nS + bias_V[ids_S], softcap)

    def drop(self, tile: slice) -> None:
        """As of `TiledLogits`, for the one tile that there is."""
        self.kept_nP = None

    def scan(self, tiles: Sequence[slice], ids_nK: Tensor, without_nK: Tensor | None = None) -> tuple[LogMass, Tensor]:
        """As of `TiledLogits`; the ids that do not count are the first of `ids_nK`, and impossible from here on."""
        (num_rows, num_ids), hidden_nD = ids_nK.shape, self.hidden_nD
        num_without = 0 if without_nK is None else without_nK.shape[1]
        kept = torch.float16 if hidden_nD.itemsize == 2 else hidden_nD.dtype
        found = {"dtype": wide_dtype(hidden_nD), "device": hidden_nD.device}
        tiles = _scanned(tiles, num_rows)
        room = torch.empty(num_rows * max(tile.stop - tile.start for tile in tiles), **found)
        state_3n, picked_nK = torch.empty(3, num_rows, **found), torch.full((num_rows, num_ids), -math.inf, **found)
        self.kept_nP = torch.empty(num_rows, _padded(self.view.size), dtype=kept, device=hidden_nD.device)
        self.kept_nP[:, self.view.size :] = -math.inf
        ids_nK, rules = ids_nK.contiguous(), _rules_of(self, found["dtype"])
        for tile in tiles:
            num_columns = tile.stop - tile.start
            tile_nm = room[: num_rows * num_columns].view(num_rows, num_columns)
            product(hidden_nD, self.head.weight_VD[tile].to(hidden_nD.dtype).T, tile_nm)
            with _on(hidden_nD):
                _scan_kernel[(num_rows,)](
                    tile_nm,
                    ids_nK,
                    *rules,
                    picked_nK,
                    state_3n,
                    self.kept_nP,
                    tile.start,
                    num_columns,
                    self.kept_nP.shape[1],
                    num_ids,
                    num_without,
                    _stop_place(self),
                    self.head.softcap or 1.0,
                    HAS_BIAS=self.head.bias_V is not None,
                    HAS_HIDDEN=self.view.is_hidden_V is not None,
                    HAS_STOP=self.stop_n is not None,
                    HAS_CAP=self.head.softcap is not None,
                    HAS_WITHOUT=num_without > 0,
                    IS_FIRST=tile.start == 0,
                    NUM_IDS=triton.next_power_of_2(num_ids),
                    BLOCK=_block(num_columns),
                    num_warps=NUM_WARPS,
                )
        self.shift_n, peak_n, mass_n = state_3n
        self._slopes_nK = uncapped(torch.ones_like(picked_nK), picked_nK, self.head.softcap)
        self._slopes_nK.masked_fill_(ids_nK == _stop_place(self), 1)
        return LogMass(peak_n, mass_n.log()), self.with_rules(ids_nK, picked_nK) - self.shift_n[:, None]

    def rest_gradient(self, tile: slice, ids_nK: Tensor, mass: LogMass, slope_n: Tensor) -> Tensor:
        """As of `TiledLogits`, written over the logits."""
        assert self.kept_nP is not None
        gradient_nP = self.kept_nP.view(self.hidden_nD.dtype)
        numbers = torch.stack([*mass, slope_n, self.shift_n])
        _launch(_rest_kernel, self, self.kept_nP, numbers, gradient_nP)
        return gradient_nP[:, : self.view.size]

    def uncapped(self, gradient_nm: Tensor, tile: slice) -> Tensor:
        """As of `TiledLogits`; it has been done by the kernels, and by `of_picked`."""
        return gradient_nm

    def of_picked(self, slopes_nK: Tensor) -> Tensor:
        """As of `TiledLogits`."""
        return slopes_nK * self._slopes_nK


class TritonTileDivergence(TileDivergence):
    """Two models on whole rows; `FullDivergence.jsd_share` says which divergence."""

    logits_class: ClassVar[type[TiledLogits]] = TritonLogits

    def sums(self, tile: slice) -> tuple[Tensor, Tensor]:
        """As of `TileDivergence`."""
        num_rows, num_columns = self._rows[0].shape
        parts = triton.cdiv(num_columns, _block(num_columns))
        sums_2nP = torch.empty(2, num_rows, parts, dtype=self._dtype, device=self._rows[0].device)
        nothing_n = self.student_mass.peak_n
        self._launch(nothing_n, nothing_n, sums_2nP)
        value_n, slope_n = sums_2nP.sum(-1)
        return value_n, slope_n

    def gradient(self, tile: slice, slope_n: Tensor, weights_n: Tensor) -> Tensor:
        """As of `TileDivergence`, written over the student's logits, in the type of its products."""
        gradient_nP = self._rows[0].view(self.student.hidden_nD.dtype)
        self._launch(slope_n, weights_n, gradient_nP)
        return gradient_nP[:, : self.student.view.size]

    @property
    def _rows(self) -> tuple[Tensor, Tensor]:
        assert isinstance(self.student, TritonLogits) and isinstance(self.target, TritonLogits)
        assert self.student.kept_nP is not None and self.target.kept_nP is not None
        return self.student.kept_nP, self.target.kept_nP

    @property
    def _dtype(self) -> torch.dtype:
        return wide_dtype(*self._rows)

    def _launch(self, slope_n: Tensor, weights_n: Tensor, found: Tensor) -> None:
        share, student = self.divergence.jsd_share, self.student
        assert share is not None and isinstance(student, TritonLogits)
        numbers = [*self.student_mass, *self.target_mass, slope_n, weights_n, student.shift_n]
        _launch(
            _divergence_kernel,
            student,
            *self._rows,
            torch.stack([each.to(self._dtype) for each in numbers]),
            found,
            IS_GRADIENT=found.dim() == 2,
            SHARE=share,
            LOG_SHARE=math.log(share) if share > 0 else 0.0,
            LOG_REST=math.log1p(-share) if share < 1 else 0.0,
            IS_DOUBLE=self._dtype == torch.float64,
        )


def _launch(kernel: Any, logits: TiledLogits, rows_nP: Tensor, *tensors: Tensor, **constants: object) -> None:
    """On all parts of all rows."""
    num_rows, num_columns = rows_nP.shape
    with _on(rows_nP):
        kernel[(num_rows, triton.cdiv(num_columns, _block(num_columns)))](
            rows_nP,
            *tensors,
            num_columns,
            _stop_place(logits),
            logits.head.softcap or 1.0,
            HAS_CAP=logits.head.softcap is not None,
            BLOCK=_block(num_columns),
            num_warps=NUM_WARPS,
            **{"IS_DOUBLE": rows_nP.dtype == torch.float64, **constants},
        )


def _scanned(tiles: Sequence[slice], num_rows: int) -> list[slice]:
    """The tiles, each in as many like parts as bring it near `SCANNED_ENTRIES`."""
    parts = []
    for tile in tiles:
        width = tile.stop - tile.start
        columns = width // max(1, round(num_rows * width / SCANNED_ENTRIES))
        columns = width if columns < 128 else -(-columns // 128) * 128
        parts += [slice(first, min(first + columns, tile.stop)) for first in range(tile.start, tile.stop, columns)]
    return parts


def _padded(size: int) -> int:
    """Columns of what is kept: rows that begin at multiples of 128 bytes are read and multiplied several times as fast.

    Vocabularies are of any size, 151,669 for Qwen3. What is added is impossible, so it has no part in anything.
    """
    return -(-size // ALIGNED) * ALIGNED


def _block(num_columns: int) -> int:
    return int(min(MAX_BLOCK, max(16, triton.next_power_of_2(num_columns))))


def _stop_place(logits: TiledLogits) -> int:
    """Where the merged stop event stands; -1 = there is none."""
    stop_id = logits.view.stop_id
    return -1 if logits.stop_n is None or stop_id is None else stop_id


def _rules_of(logits: TiledLogits, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Bias, 1 where an id has no event of its own, and the merged stop event; what is missing is not read."""
    bias_V, is_hidden_V, stop_n = logits.head.bias_V, logits.view.is_hidden_V, logits.stop_n
    nothing = logits.hidden_nD
    return (
        nothing if bias_V is None else bias_V,
        nothing if is_hidden_V is None else is_hidden_V.view(torch.uint8),
        nothing if stop_n is None else stop_n.to(dtype),
    )


# ------------------------------------------------------------------------------------------------------------- kernels


@triton.jit
def _head_logits(products, bias_pointer, ids, is_there, softcap, HAS_BIAS: tl.constexpr, HAS_CAP: tl.constexpr):
    """What a head makes of a product with its rows."""
    if HAS_BIAS:
        products += tl.load(bias_pointer + ids, mask=is_there, other=0.0).to(products.dtype)
    if HAS_CAP:
        products = softcap * _tanh(products / softcap)
    return products


@triton.jit
def _tanh(values):
    """In terms of exp of what is not positive, which cannot overflow."""
    small = tl.exp(-2.0 * tl.abs(values))
    size = (1.0 - small) / (1.0 + small)
    return tl.where(values < 0.0, -size, size)


@triton.jit
def _shared_logits(
    tile,
    bias_pointer,
    hidden_pointer,
    first,
    places,
    num_columns,
    stop_place,
    stop,
    softcap,
    HAS_BIAS: tl.constexpr,
    HAS_HIDDEN: tl.constexpr,
    HAS_STOP: tl.constexpr,
    HAS_CAP: tl.constexpr,
    HAS_WITHOUT: tl.constexpr,
):
    """A part of a tile's row; -inf beyond the last column."""
    is_there = places < num_columns
    values = tl.load(tile + places, mask=is_there, other=-float("inf"))
    capped = _head_logits(values, bias_pointer, first + places, is_there, softcap, HAS_BIAS, HAS_CAP)
    # A cap would make something of -inf, which stands here for an id that does not count.
    values = tl.where(values == -float("inf"), values, capped) if HAS_WITHOUT else capped
    if HAS_HIDDEN:
        is_hidden = tl.load(hidden_pointer + first + places, mask=is_there, other=1)
        values = tl.where(is_hidden == 1, -float("inf"), values)
    if HAS_STOP:
        values = tl.where(first + places == stop_place, stop, values)
    return tl.where(is_there, values, -float("inf"))


@triton.jit
def _scan_kernel(
    tile_pointer,
    ids_pointer,
    bias_pointer,
    hidden_pointer,
    stop_pointer,
    picked_pointer,
    state_pointer,
    kept_pointer,
    first,
    num_columns,
    size,
    num_ids,
    num_without,
    stop_place,
    softcap,
    HAS_BIAS: tl.constexpr,
    HAS_HIDDEN: tl.constexpr,
    HAS_STOP: tl.constexpr,
    HAS_CAP: tl.constexpr,
    HAS_WITHOUT: tl.constexpr,
    IS_FIRST: tl.constexpr,
    NUM_IDS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row of a tile: goes on with its peak and mass, picks logits, and keeps all of them."""
    row, num_rows = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    tile = tile_pointer + row * num_columns
    slots = tl.arange(0, NUM_IDS)
    ids = tl.load(ids_pointer + row * num_ids + slots, mask=slots < num_ids, other=-1)
    is_inside = (ids >= first) & (ids < first + num_columns)
    picked = tl.load(tile + ids - first, mask=is_inside, other=0.0)
    picked = _head_logits(picked, bias_pointer, ids, is_inside, softcap, HAS_BIAS, HAS_CAP)
    tl.store(picked_pointer + row * num_ids + slots, picked, mask=is_inside)
    stop = tl.full([], 0.0, tile_pointer.dtype.element_ty)
    if HAS_STOP:
        stop = tl.load(stop_pointer + row)
    if HAS_WITHOUT:
        is_without = slots < num_without
        if HAS_STOP:
            stop = tl.where(tl.max((is_without & (ids == stop_place)).to(tl.int32), 0) == 1, -float("inf"), stop)
        tl.debug_barrier()  # picked before they are overwritten, and overwritten before they are read
        nothing = tl.full([NUM_IDS], -float("inf"), tile_pointer.dtype.element_ty)
        tl.store(tile + ids - first, nothing, mask=is_inside & is_without)
        tl.debug_barrier()
    state = state_pointer + row
    if IS_FIRST:
        peak = tl.full([], LOWEST, tile_pointer.dtype.element_ty)
        for start in range(0, num_columns, BLOCK):
            places = start + tl.arange(0, BLOCK)
            values = _shared_logits(
                tile,
                bias_pointer,
                hidden_pointer,
                first,
                places,
                num_columns,
                stop_place,
                stop,
                softcap,
                HAS_BIAS,
                HAS_HIDDEN,
                HAS_STOP,
                HAS_CAP,
                HAS_WITHOUT,
            )
            peak = tl.maximum(peak, tl.max(values, 0))
        shift = tl.where(peak > LOWEST, peak, 0.0)
        peak = tl.full([], LOWEST, tile_pointer.dtype.element_ty)
        mass = tl.full([], 0.0, tile_pointer.dtype.element_ty)
        tl.store(state, shift)
    else:
        shift, peak = tl.load(state), tl.load(state + num_rows)
        mass = tl.load(state + 2 * num_rows)
    for start in range(0, num_columns, BLOCK):
        places = start + tl.arange(0, BLOCK)
        values = _shared_logits(
            tile,
            bias_pointer,
            hidden_pointer,
            first,
            places,
            num_columns,
            stop_place,
            stop,
            softcap,
            HAS_BIAS,
            HAS_HIDDEN,
            HAS_STOP,
            HAS_CAP,
            HAS_WITHOUT,
        )
        values -= shift
        top = tl.maximum(peak, tl.max(values, 0))
        mass = mass * tl.exp(peak - top) + tl.sum(tl.exp(values - top), 0)
        peak = top
        if kept_pointer.dtype.element_ty == tl.float16:
            # So far from the peak that nothing but impossible and possible is to be told apart.
            inside = tl.minimum(tl.maximum(values, -LARGEST_HALF), LARGEST_HALF)
            values = tl.where(values == -float("inf"), values, inside)
        kept = kept_pointer + row * size + first + places
        tl.store(kept, values.to(kept_pointer.dtype.element_ty), mask=places < num_columns)
    tl.store(state + num_rows, peak)
    tl.store(state + 2 * num_rows, mass)


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
def _uncapped(gradient, student, shift, places, stop_place, softcap, HAS_CAP: tl.constexpr):
    """The gradient before the cap, which the merged stop event does not have."""
    if HAS_CAP:
        ratio = tl.where(student == -float("inf"), 1.0, (student + shift) / softcap)
        gradient = tl.where(places == stop_place, gradient, gradient * (1.0 - ratio * ratio))
    return gradient


@triton.jit
def _divergence_kernel(
    student_pointer,
    target_pointer,
    numbers_pointer,
    found_pointer,
    num_columns,
    stop_place,
    softcap,
    IS_GRADIENT: tl.constexpr,
    SHARE: tl.constexpr,
    LOG_SHARE: tl.constexpr,
    LOG_REST: tl.constexpr,
    HAS_CAP: tl.constexpr,
    BLOCK: tl.constexpr,
    IS_DOUBLE: tl.constexpr,
):
    """Of a part of a row: sums of terms and of g; or w (g - p Σ g), perhaps in place of the student's logits."""
    row, part = tl.program_id(0), tl.program_id(1)
    num_rows, num_parts = tl.num_programs(0), tl.num_programs(1)
    places = part * BLOCK + tl.arange(0, BLOCK)
    student = _load_block(_row_of(student_pointer, num_columns), places, num_columns, IS_DOUBLE)
    target = _load_block(_row_of(target_pointer, num_columns), places, num_columns, IS_DOUBLE)
    numbers = numbers_pointer + row
    log_p = (student - tl.load(numbers)) - tl.load(numbers + num_rows)
    log_q = (target - tl.load(numbers + 2 * num_rows)) - tl.load(numbers + 3 * num_rows)
    p, term, slope = _terms(log_p, log_q, SHARE, LOG_SHARE, LOG_REST)
    if IS_GRADIENT:
        weight = tl.load(numbers + 5 * num_rows)
        gradient = weight * (slope - p * tl.load(numbers + 4 * num_rows))
        gradient = _uncapped(gradient, student, tl.load(numbers + 6 * num_rows), places, stop_place, softcap, HAS_CAP)
        # What does not count must not count when it is infinite either.
        gradient = tl.where(weight == 0.0, 0.0, gradient)
        place = found_pointer + row.to(tl.int64) * num_columns + places
        tl.store(place, gradient.to(found_pointer.dtype.element_ty), mask=places < num_columns)
    else:
        place = found_pointer + row * num_parts + part
        tl.store(place, tl.sum(term, 0))
        tl.store(place + num_rows * num_parts, tl.sum(slope, 0))


@triton.jit
def _rest_kernel(
    student_pointer,
    numbers_pointer,
    gradient_pointer,
    num_columns,
    stop_place,
    softcap,
    HAS_CAP: tl.constexpr,
    BLOCK: tl.constexpr,
    IS_DOUBLE: tl.constexpr,
):
    """Of a part of a row: slope · exp(z - R), which may take the place of the logits."""
    row, num_rows = tl.program_id(0), tl.num_programs(0)
    places = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    student = _load_block(_row_of(student_pointer, num_columns), places, num_columns, IS_DOUBLE)
    numbers = numbers_pointer + row
    gradient = tl.exp((student - tl.load(numbers)) - tl.load(numbers + num_rows)) * tl.load(numbers + 2 * num_rows)
    gradient = _uncapped(gradient, student, tl.load(numbers + 3 * num_rows), places, stop_place, softcap, HAS_CAP)
    place = gradient_pointer + row.to(tl.int64) * num_columns + places
    tl.store(place, gradient.to(gradient_pointer.dtype.element_ty), mask=places < num_columns)
