"""What the programs over rows of logits share: how they are launched, and how blocks of a row are read and added up."""

# Triton is optional, so its types may be absent; and a kernel is a language of its own, not typed Python.
# mypy: disable-error-code="import-not-found, untyped-decorator, no-untyped-def, no-untyped-call, misc"

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# Entries of a row at a time, and the warps that share them: 8 numbers of each kind per thread stay in registers.
MAX_BLOCK = 4096
MIN_BLOCK = 256
NUM_WARPS = 8
ROW_WARPS = 16
# Most registers of a thread, on NVIDIA's cards only; None = as many as the compiler likes.
ROW_REGISTERS: int | None = None

# Stands for the peak of a block without any possible token: -inf minus -inf would be NaN.
LOWEST_PEAK = tl.constexpr(-1e30)

_INF = tl.constexpr(float("inf"))


def _launch(kernel: Any, student_BV: Tensor, teacher_BV: Tensor, *arguments: Tensor, **constants: Any) -> None:
    """One program per row of two."""
    student_BV, teacher_BV = _contiguous_rows(student_BV), _contiguous_rows(teacher_BV)
    num_rows, vocabulary_size = student_BV.shape
    if not num_rows:
        return
    is_double = torch.float64 in (student_BV.dtype, teacher_BV.dtype)
    with _on(student_BV):
        kernel[(num_rows,)](
            student_BV,
            teacher_BV,
            student_BV.stride(0),
            teacher_BV.stride(0),
            vocabulary_size,
            *(argument.contiguous() for argument in arguments),
            BLOCK=_block(vocabulary_size),
            IS_DOUBLE=is_double,
            num_warps=ROW_WARPS,
            **({} if ROW_REGISTERS is None else {"maxnreg": ROW_REGISTERS}),
            **constants,
        )


def _contiguous_rows(logits_BV: Tensor) -> Tensor:
    return logits_BV if logits_BV.stride(1) == 1 else logits_BV.contiguous()


def _block(vocabulary_size: int) -> int:
    """Entries of a row at a time: a power of two."""
    return int(min(MAX_BLOCK, max(MIN_BLOCK, triton.next_power_of_2(vocabulary_size))))


def _on(tensor: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device, which need not be the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.device.type == "cuda" else nullcontext()


@triton.jit
def _narrowed(number, IS_DOUBLE: tl.constexpr):
    """To the type that entries are computed in."""
    return number if IS_DOUBLE else number.to(tl.float32)


@triton.jit
def _load_block(pointer, places, vocabulary_size, IS_DOUBLE: tl.constexpr):
    """Some places of one row."""
    values = tl.load(pointer + places, mask=places < vocabulary_size, other=-float("inf"))
    return values.to(tl.float64) if IS_DOUBLE else values.to(tl.float32)


@triton.jit
def _row_of(pointer, stride):
    """Where this program's row begins."""
    return pointer + tl.program_id(0).to(tl.int64) * stride


@triton.jit
def _scaled(mass, peak, top, IS_DOUBLE: tl.constexpr):
    """A mass relative to another peak; the factor has no more digits than the mass."""
    return mass * tl.exp(_narrowed(peak - top, IS_DOUBLE)).to(tl.float64)


@triton.jit
def _with_block(peak, mass, values, IS_DOUBLE: tl.constexpr):
    """Peak and mass of a part of a row, and one block more."""
    new_peak = tl.maximum(tl.max(values, 0), LOWEST_PEAK)
    new_mass = tl.sum(tl.exp(values - new_peak).to(tl.float64), 0)
    new_peak = new_peak.to(tl.float64)
    top = tl.maximum(peak, new_peak)
    return top, _scaled(mass, peak, top, IS_DOUBLE) + _scaled(new_mass, new_peak, top, IS_DOUBLE)


@triton.jit
def _whole(mass, peak):
    """Log mass of a whole row; NaN where there is none."""
    return tl.where(mass > 0, tl.log(mass) + peak, float("nan"))
