"""The Philox 4x32-10 generator: random words that are a pure function of a counter and a key.

Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["philox"]

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
NUM_ROUNDS = 10
MASK_32 = 0xFFFFFFFF


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four independent 32-bit words per counter (Philox 4x32-10).

    Args:
      counter: four int64 tensors below 2^32.
      key: int64, 64 bits; all five broadcast to one shape.
    Returns:
      four int64 tensors of that shape, uniform on [0, 2^32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key & MASK_32, (key >> 32) & MASK_32
    for _ in range(NUM_ROUNDS):
        # int64 products wrap around; the upper 32 bits survive the arithmetic shift once they are masked.
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0 = (p1 >> 32).bitwise_and(MASK_32).bitwise_xor(c1 ^ k0)
        c2 = (p0 >> 32).bitwise_and(MASK_32).bitwise_xor(c3 ^ k1)
        c1, c3 = p1.bitwise_and_(MASK_32), p0.bitwise_and_(MASK_32)
        k0, k1 = (k0 + KEY_INCREMENTS[0]) & MASK_32, (k1 + KEY_INCREMENTS[1]) & MASK_32
    return c0, c1, c2, c3
