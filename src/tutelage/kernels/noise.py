"""Random words for whole vocabularies: a pure function of a row's own uniform number and the token.

Gumbel-max draws need one number per vocabulary entry. It comes from the Philox 4x32-10 generator (Salmon et al. 2011,
"Parallel random numbers: as easy as 1, 2, 3"), keyed by the row's uniform and counted by the token, so that a draw in
pieces, in blocks of a GPU, or in one go is the same draw.

One counter gives four words. Tokens are numbered in tiles of 4 x LANES: word j of lane i in tile k belongs to token
4 LANES k + LANES j + i, which lets a kernel read four contiguous stretches instead of every fourth entry.

Axis letters: B rows, C counters, N tokens of a piece.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["LANES", "TILE", "exponentials", "keys", "philox"]

LANES = 64
TILE = 4 * LANES

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
NUM_ROUNDS = 10
MASK_32 = 0xFFFFFFFF
WORD_TO_UNIT = 2.0**-32
MAX_BELOW_ONE = 1 - 2.0**-24


def keys(uniforms_B: Tensor) -> Tensor:
    """The 53 random bits of a uniform number in [0, 1), as the 64-bit key of its row."""
    return (uniforms_B.double() * 2.0**53).long()


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


def exponentials(keys_B: Tensor, first_token: int, num_tokens: int, purpose: int, dtype: torch.dtype) -> Tensor:
    """Standard exponential numbers for a piece of the vocabulary, [B, N]; always positive and finite.

    E = -log(1 - u) with u = (word + 1/2) / 2^32: small E keep their relative precision, and these decide a draw. The
    smallest is 2^-33, so a token less likely than about 1e-10 is drawn more rarely still than it should be.

    Args:
      keys_B: from `keys`.
      first_token: a multiple of TILE.
      num_tokens: N.
      purpose: below 2^32; draws with another purpose are independent, even with the same key.
      dtype: float32 or float64.
    """
    assert first_token % TILE == 0, first_token
    num_tiles = -(-num_tokens // TILE)
    first_counter = first_token // 4
    counters_C = torch.arange(first_counter, first_counter + num_tiles * LANES, device=keys_B.device)
    zero = torch.zeros((), dtype=torch.int64, device=keys_B.device)
    words = philox((counters_C, zero + purpose, zero, zero), keys_B[:, None])
    words_BN = torch.stack([word.reshape(-1, num_tiles, LANES) for word in words], 2).flatten(1)[:, :num_tokens]
    units_BN = words_BN.to(dtype).add_(0.5).mul_(WORD_TO_UNIT).clamp_max_(MAX_BELOW_ONE)
    return units_BN.neg_().log1p_().neg_()
