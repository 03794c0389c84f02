"""Attention of many texts of any lengths, by those of PyTorch's kernels that serve new sizes at once.

On an H100 PyTorch takes cuDNN's kernel first, and that one makes a plan for every combination of sizes it has not met:
0.4 s forward and 0.5 s backward on a B200 (FunASR issue 3704 on GitHub; PyTorch's pull request 155958 is about the
same). A captured decode step has some ten combinations and meets them again and again. Prefills, scores, updates and
steps that are not captured have new ones all the time, so they leave cuDNN out.

Of the kernels that remain, flash attention takes no mask and no float32, and in PyTorch 2.11 the memory-efficient one
does not know heads that share their keys (pull request 191085 adds them later). PyTorch would then hold all scores.
Instead, keys and values are repeated.

Axis letters: b rows, T queries, S keys, Q query heads, H heads of keys and values, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["attend", "without_plans"]

HALVES = (torch.bfloat16, torch.float16)


@contextmanager
def without_plans(device: torch.device) -> Iterator[None]:
    """Leave cuDNN's attention out on CUDA, for this process; what the user has switched off stays off."""
    if device.type != "cuda" or not torch.backends.cuda.cudnn_sdp_enabled():
        yield
        return
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(True)


def attend(
    queries_bQTD: Tensor, keys_bHSD: Tensor, values_bHSD: Tensor, allowed_b1TS: Tensor | None, scale: float
) -> Tensor:
    """softmax(scale · q k + mask) v, [b, Q, T, D]; query head q reads the key head q // (Q / H).

    Args:
      allowed_b1TS: what each query may see; None = key s is seen by the queries t >= s.
    """
    groups = queries_bQTD.shape[1] // keys_bHSD.shape[1]
    if groups > 1 and repeats_keys(queries_bQTD, is_masked=allowed_b1TS is not None):
        keys_bHSD, values_bHSD = (each.repeat_interleave(groups, dim=1) for each in (keys_bHSD, values_bHSD))
    with without_plans(queries_bQTD.device):
        attended: Tensor = F.scaled_dot_product_attention(
            queries_bQTD,
            keys_bHSD,
            values_bHSD,
            attn_mask=allowed_b1TS,
            is_causal=allowed_b1TS is None,
            scale=scale,
            enable_gqa=queries_bQTD.shape[1] != keys_bHSD.shape[1],
        )
    return attended


def repeats_keys(queries: Tensor, *, is_masked: bool) -> bool:
    """Whether no kernel but the one that holds all scores would take heads that share their keys."""
    kind = queries.device.type
    if kind != "cuda":
        return False
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else queries.dtype
    return is_masked or dtype not in HALVES
