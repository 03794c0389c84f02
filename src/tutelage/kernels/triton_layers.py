"""The small operations between a layer's matrix products, one kernel each: they are many, and a GPU spends as long on
starting them as on the products of a few rows.

Every kernel rounds where the plain form rounds, so their numbers differ by the order of a sum, and by the last bits of
exp and of quotients on a GPU, at most.

Axis letters: N rows, D entries of a row.
"""

# mypy: disable-error-code="import-not-found, untyped-decorator, no-untyped-def, no-untyped-call, misc"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tutelage.kernels.triton_rows import _on

__all__ = ["gated", "normalised", "turned"]

GATE_BLOCK = 1024


def normalised(states: Tensor, weight_D: Tensor, epsilon: float) -> Tensor:
    """x · w / sqrt(mean(x²) + epsilon) over the last axis, in float32, rounded to the type of x before the weight."""
    rows_ND = states.reshape(-1, states.shape[-1]).contiguous()
    found_ND = torch.empty_like(rows_ND, dtype=torch.promote_types(states.dtype, weight_D.dtype))
    width = rows_ND.shape[1]
    if len(rows_ND):
        with _on(rows_ND):
            _normalise[(len(rows_ND),)](rows_ND, weight_D.contiguous(), found_ND, epsilon, width, **_shared_out(width))
    return found_ND.view(states.shape)


def turned(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x cos + swap(x) sin for [..., heads, D], where swap exchanges the halves; cos, sin: [..., 1, D]."""
    *_, heads, width = states.shape
    rows_ND = states.reshape(-1, width).contiguous()
    found_ND = torch.empty_like(rows_ND)
    if len(rows_ND):
        angles = (table.reshape(-1, width).contiguous() for table in (cos, sin))
        with _on(rows_ND):
            _turn[(len(rows_ND),)](rows_ND, *angles, found_ND, heads, width, **_shared_out(width))
    return found_ND.view(states.shape)


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) · up, entry by entry; silu(x) = x / (1 + exp(-x)) is rounded to the type of x before the product."""
    gate, up = gate.contiguous(), up.contiguous()
    found, number = torch.empty_like(gate), gate.numel()
    if number:
        with _on(gate):
            _gate[(triton.cdiv(number, GATE_BLOCK),)](gate, up, found, number, BLOCK=GATE_BLOCK)
    return found


def _shared_out(width: int) -> dict[str, int]:
    """A row at a time, and the warps that share it: 8 entries of each thread are one load of half precision."""
    block = triton.next_power_of_2(width)
    return {"BLOCK": block, "num_warps": min(8, max(1, block // 256))}


@triton.jit
def _normalise(states, weight, found, epsilon, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    places = tl.arange(0, BLOCK)
    inside = places < width
    x = tl.load(states + row * width + places, mask=inside, other=0.0)
    wide = x.to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(wide * wide, axis=0) / width + epsilon)
    w = tl.load(weight + places, mask=inside, other=0.0)
    unit = (wide * scale).to(x.dtype).to(tl.float32)
    tl.store(found + row * width + places, unit * w.to(tl.float32), mask=inside)


@triton.jit
def _turn(states, cos, sin, found, heads, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    token = row // heads
    places = tl.arange(0, BLOCK)
    inside = places < width
    half = width // 2
    swapped = tl.where(places < half, places + half, places - half)
    x = tl.load(states + row * width + places, mask=inside, other=0.0)
    other = tl.load(states + row * width + swapped, mask=inside, other=0.0).to(tl.float32)
    c = tl.load(cos + token * width + places, mask=inside, other=0.0).to(tl.float32)
    s = tl.load(sin + token * width + places, mask=inside, other=0.0).to(tl.float32)
    crossed = (other * s).to(x.dtype).to(tl.float32)
    tl.store(found + row * width + places, crossed + x.to(tl.float32) * c, mask=inside)


@triton.jit
def _gate(gate, up, found, number, BLOCK: tl.constexpr):
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = places < number
    x = tl.load(gate + places, mask=inside, other=0.0)
    u = tl.load(up + places, mask=inside, other=0.0).to(tl.float32)
    wide = x.to(tl.float32)
    silu = (wide / (1.0 + tl.exp(-wide))).to(x.dtype).to(tl.float32)
    tl.store(found + places, silu * u, mask=inside)
