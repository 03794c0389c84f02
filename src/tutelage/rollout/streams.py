"""Randomness that belongs to a token, not to a moment: every draw is a pure function of where it is used.

A uniform number is keyed by (seed, step, prompt, sample, position) through the Philox 4x32-10 generator (Salmon et al.
2011, "Parallel random numbers: as easy as 1, 2, 3"). Batching, refilling, resuming and evaluating in between can
therefore not change what a rollout draws. Philox is also what Triton's `tl.rand` computes, so a fused kernel can draw
the same numbers.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

__all__ = ["derive_seed", "philox", "uniforms"]

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
NUM_ROUNDS = 10
MASK_32 = 0xFFFFFFFF


def derive_seed(seed: int, purpose: str) -> int:
    """A 64-bit seed for another use of randomness, unrelated to `seed` itself ("evaluation", "order", ...)."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "little")


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four independent 32-bit words per counter (Philox 4x32-10).

    Args:
      counter: four int64 tensors of one shape, each below 2^32.
      seed: 64 bits, the key.
    Returns:
      four int64 tensors of that shape, uniform on [0, 2^32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = seed & MASK_32, (seed >> 32) & MASK_32
    for _ in range(NUM_ROUNDS):
        # int64 products wrap around; the upper 32 bits survive the arithmetic shift once they are masked.
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((p1 >> 32) & MASK_32) ^ c1 ^ k0,
            p1 & MASK_32,
            ((p0 >> 32) & MASK_32) ^ c3 ^ k1,
            p0 & MASK_32,
        )
        k0, k1 = (k0 + KEY_INCREMENTS[0]) & MASK_32, (k1 + KEY_INCREMENTS[1]) & MASK_32
    return c0, c1, c2, c3


def uniforms(seed: int, step: int, prompts_B: Tensor, samples_B: Tensor, positions_T: Tensor) -> Tensor:
    """Uniform numbers in [0, 1) for rows and positions, [B, T] float64 with 53 random bits.

    Args:
      seed, step: shared by the call.
      prompts_B, samples_B: which prompt and which of its samples each row is.
      positions_T: places in the response, the first token being 0.
    """
    shape = (len(prompts_B), len(positions_T))
    counter = (
        positions_T[None, :].expand(shape),
        samples_B[:, None].expand(shape),
        prompts_B[:, None].expand(shape),
        torch.full(shape, step, dtype=torch.int64),
    )
    high, low, _, _ = philox(counter, seed)
    return ((high << 21) | (low >> 11)).double() * 2.0**-53
