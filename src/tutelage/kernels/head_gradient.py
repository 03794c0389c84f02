"""The way back through a language-model head: from gradients on tiles of logits to those of hidden states and head.

Axis letters: as in `kernels.tiles`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tutelage.distributions import wide_dtype
from tutelage.kernels.tiles import Head, TiledLogits, ids_on, uncapped

__all__ = ["HeadGradient", "product"]

# How far the gradient that comes in may be from a multiple of the weights, relative to its largest entry.
PROPORTIONAL = 1e-4


class HeadGradient:
    """Gradients of hidden states and head, summed up tile by tile in float32 or wider.

    Args:
      head: the student's; a part that needs no gradient gets none.
      hidden_ND: all hidden states.
      is_whole: a block's gradient comes as one tile. Then a product makes all sums but those over blocks, and what is
        summed up has the types of hidden states and weights: a few roundings more of the head's gradient, and half the
        bytes.
    """

    def __init__(self, head: Head, hidden_ND: Tensor, *, is_whole: bool = False) -> None:
        self.head = head
        self.hidden_ND, self.weight_VD = (_zeros(each, is_whole) for each in (hidden_ND, head.weight_VD))
        self.bias_V = _zeros(head.bias_V)

    @property
    def is_wanted(self) -> bool:
        """Hidden states or head need a gradient."""
        return any(total is not None for total in (self.hidden_ND, self.weight_VD, self.bias_V))

    def attached(self, values_N: Tensor, weights_N: Tensor, hidden_ND: Tensor) -> Tensor:
        """The values, with a graph through which these gradients flow to hidden states and head, once."""
        if not self.is_wanted:
            return values_N
        attached_N: Tensor = _Attached.apply(self, values_N, weights_N, hidden_ND, *self.head[:2])  # type: ignore[no-untyped-call]
        return attached_N

    def add(self, block: slice, logits: TiledLogits, tile: slice, gradient_nm: Tensor) -> None:
        """The loss's gradient on the shared logits of a tile, which is used up."""
        place = logits.view.place_of_stop(tile)
        if place is not None:
            assert logits.stops_nS is not None
            # A gradient on the stop event reaches every way of stopping in proportion to its share.
            stops_nS = gradient_nm[:, place, None] * logits.stops_nS.softmax(-1)
            stops_nS = uncapped(stops_nS, logits.stops_nS, self.head.softcap)
            gradient_nm[:, place] = 0
            ids_S = ids_on(gradient_nm.device, logits.view.stop_ids)
            if logits.is_whole:
                gradient_nm.index_copy_(1, ids_S, stops_nS.to(gradient_nm.dtype))
            else:
                self._add(block, logits, ids_S, stops_nS)
        self._add(block, logits, tile, logits.uncapped(gradient_nm, tile))

    def _add(self, block: slice, logits: TiledLogits, ids: slice | Tensor, gradient_nm: Tensor) -> None:
        narrow_nm = gradient_nm.to(logits.hidden_nD.dtype)
        if self.hidden_ND is not None and logits.is_whole:
            product(narrow_nm, self.head.weight_VD[ids].to(narrow_nm.dtype), wide_nD := _wide_like(logits.hidden_nD))
            self.hidden_ND[block] = wide_nD
        elif self.hidden_ND is not None:
            _add_product(self.hidden_ND[block], narrow_nm, self.head.weight_VD[ids])
        if self.weight_VD is not None:
            if isinstance(ids, slice):
                _add_product(self.weight_VD[ids], narrow_nm.T, logits.hidden_nD)
            else:
                product_SD = gradient_nm.T @ logits.hidden_nD.to(gradient_nm)
                self.weight_VD.index_add_(0, ids, product_SD.to(self.weight_VD.dtype))
        if self.bias_V is not None:
            self.bias_V[ids] += gradient_nm.sum(0, dtype=self.bias_V.dtype)


class _Attached(torch.autograd.Function):
    """Values whose gradients were taken together with them."""

    @staticmethod
    def forward(
        ctx: Any, gradient: HeadGradient, values_N: Tensor, weights_N: Tensor, *inputs: Tensor | None
    ) -> Tensor:
        ctx.gradient, ctx.types = gradient, [None if each is None else each.dtype for each in inputs]
        ctx.save_for_backward(weights_N)
        return values_N.clone()

    @staticmethod
    def backward(ctx: Any, incoming_N: Tensor) -> tuple[Tensor | None, ...]:
        (weights_N,) = ctx.saved_tensors
        totals = (ctx.gradient.hidden_ND, ctx.gradient.weight_VD, ctx.gradient.bias_V)
        assert any(total is not None for total in totals), "a tiled loss supports one backward pass"
        weights_N = weights_N.to(incoming_N)
        factor = (incoming_N * weights_N).sum() / weights_N.square().sum().clamp_min(torch.finfo(weights_N.dtype).tiny)
        miss, size = (incoming_N - factor * weights_N).abs().amax(), incoming_N.abs().amax()
        assert not bool(miss > PROPORTIONAL * size), "the gradient of a tiled loss is not a multiple of its weights"
        # In place, since the head's is as large as the head; and released, so that no copy of it stays.
        scaled = [None if total is None else total.mul_(factor) for total in totals]
        ctx.gradient.hidden_ND = ctx.gradient.weight_VD = ctx.gradient.bias_V = None
        pairs = zip(scaled, ctx.types, strict=True)
        return None, None, None, *(None if total is None else total.to(dtype) for total, dtype in pairs)


def _wide_like(like: Tensor) -> Tensor:
    return torch.empty_like(like, dtype=wide_dtype(like))


def _zeros(like: Tensor | None, is_narrow: bool = False) -> Tensor | None:
    """Where a gradient is summed up in float32 or wider, or in its own type; None = none is wanted."""
    if like is None or not like.requires_grad or not torch.is_grad_enabled():
        return None
    return torch.zeros_like(like, dtype=like.dtype if is_narrow else wide_dtype(like))


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, summed up in the total's type, without a temporary where the types allow it."""
    if torch.is_autocast_enabled(total.device.type):
        total += left @ right
    elif total.device.type == "cuda" and left.dtype != total.dtype:
        total += torch.mm(left, right, out_dtype=total.dtype)
    else:
        total.addmm_(left.to(total.dtype), right.to(total.dtype))


def product(left: Tensor, right: Tensor, total: Tensor) -> None:
    """total = left @ right, in the total's type whatever that of the factors; half precision is multiplied as such."""
    if left.dtype == total.dtype:
        torch.mm(left, right, out=total)
    elif total.device.type == "cuda":
        torch.mm(left, right, out_dtype=total.dtype, out=total)
    else:
        torch.mm(left.to(total.dtype), right.to(total.dtype), out=total)
