"""Log mass, entropy and the mass outside a support, in one read of each row of logits.

With z the logits, t their peak and w = exp(z - t), log mass is t + log Σ w, the entropy log Σ w - Σ w (z - t) / Σ w.
Entries are computed in float32 (float64 for float64 logits), what is summed over blocks in float64.
"""

# Triton is optional, so its types may be absent; and a kernel is a language of its own, not typed Python.
# mypy: disable-error-code="import-not-found, untyped-decorator, no-untyped-def, no-untyped-call, misc"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tutelage.kernels.triton_rows import (
    _INF,
    LOWEST_PEAK,
    NUM_WARPS,
    _block,
    _contiguous_rows,
    _load_block,
    _on,
    _row_of,
    _scaled,
    _whole,
    _with_block,
)

__all__ = ["read"]


def read(logits_NV: Tensor, ids_NK: Tensor | None = None) -> Tensor:
    """Log mass, entropy, and the log-probability of all but the given tokens, [3, N] in float64."""
    logits_NV = _contiguous_rows(logits_NV)
    num_rows, vocabulary_size = logits_NV.shape
    found_3N = torch.empty(3, num_rows, dtype=torch.float64, device=logits_NV.device)
    ids_NK = torch.empty(num_rows, 0, dtype=torch.int64, device=logits_NV.device) if ids_NK is None else ids_NK
    if num_rows:
        with _on(logits_NV):
            _statistics_kernel[(num_rows,)](
                logits_NV,
                ids_NK.contiguous(),
                found_3N,
                logits_NV.stride(0),
                vocabulary_size,
                ids_NK.shape[1],
                HAS_IDS=ids_NK.shape[1] > 0,
                BLOCK=_block(vocabulary_size),
                IS_DOUBLE=logits_NV.dtype == torch.float64,
                num_warps=NUM_WARPS,
            )
    return found_3N


@triton.jit
def _statistics_kernel(
    logits_pointer,
    ids_pointer,
    found_pointer,
    stride,
    vocabulary_size,
    num_ids,
    HAS_IDS: tl.constexpr,
    BLOCK: tl.constexpr,
    IS_DOUBLE: tl.constexpr,
):
    row, num_rows = tl.program_id(0), tl.num_programs(0)
    logits, ids = _row_of(logits_pointer, stride), _row_of(ids_pointer, num_ids)
    zero = tl.cast(0.0, tl.float64)
    peak, mass, moment = zero + LOWEST_PEAK, zero, zero
    outside_peak, outside = zero + LOWEST_PEAK, zero
    for first in range(0, vocabulary_size, BLOCK):
        places = first + tl.arange(0, BLOCK)
        values = _load_block(logits, places, vocabulary_size, IS_DOUBLE)
        # Finite even for a block without any possible token: -inf minus -inf would be NaN.
        own_peak = tl.maximum(tl.max(values, 0), LOWEST_PEAK)
        weights = tl.exp(values - own_peak)
        away = tl.where(values == -_INF, 0.0, values - own_peak)
        own_mass = tl.sum(weights, 0).to(tl.float64)
        own_moment = tl.sum(weights * away, 0).to(tl.float64)
        own_peak = own_peak.to(tl.float64)
        top = tl.maximum(peak, own_peak)
        # Each part's logits are measured from the common peak now; an empty part has no mass to move.
        moment = _scaled(moment + mass * (peak - top), peak, top, IS_DOUBLE)
        moment += _scaled(own_moment + own_mass * (own_peak - top), own_peak, top, IS_DOUBLE)
        mass = _scaled(mass, peak, top, IS_DOUBLE) + _scaled(own_mass, own_peak, top, IS_DOUBLE)
        peak = top
        if HAS_IDS:
            # With a peak of its own: beside a support that has nearly all, it would underflow.
            is_inside = places < 0
            for k in range(num_ids):
                is_inside |= places == tl.load(ids + k)
            others = tl.where(is_inside, -_INF, values)
            outside_peak, outside = _with_block(outside_peak, outside, others, IS_DOUBLE)
    log_mass = _whole(mass, peak)
    tl.store(found_pointer + row, log_mass)
    tl.store(found_pointer + num_rows + row, (log_mass - peak) - moment / mass)
    # Perhaps nothing is left outside. In a row that is NaN or without mass, all is NaN.
    rest = tl.where(outside > 0, tl.log(tl.where(outside > 0, outside, 1.0)) + (outside_peak - log_mass), -_INF)
    tl.store(found_pointer + 2 * num_rows + row, tl.where(mass > 0, rest, log_mass))
