"""Randomness that belongs to a token, not to a moment: every draw is a pure function of where it is used.

A uniform number is keyed by (seed, step, prompt, sample, position) through the Philox 4x32-10 generator (Salmon et al.
2011, "Parallel random numbers: as easy as 1, 2, 3"). Batching, refilling, resuming and evaluating in between can
therefore not change what a rollout draws. Philox is also what Triton's `tl.rand` computes, so a fused kernel can draw
the same numbers.

Each token has two numbers: one draws it, the other decides whether a drafted one is kept.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from tutelage.kernels import philox

__all__ = ["TokenStreams", "derive_seed", "uniforms"]

# Random numbers are made for this many positions at a time, because one small call costs as much as one large one; for
# more where a draft is longer.
POSITIONS_PER_BLOCK = 64


def derive_seed(seed: int, purpose: str) -> int:
    """A 64-bit seed for another use of randomness, unrelated to `seed` itself ("evaluation", "order", ...)."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "little")


def uniforms(seed: int, step: int, prompts_B: Tensor, samples_B: Tensor, positions_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Two independent uniform numbers in [0, 1) per row and position, [B, T] float64 with 53 random bits each.

    Args:
      seed, step: shared by the call.
      prompts_B, samples_B: which prompt and which of its samples each row is.
      positions_BT: places in the response, the first token being 0; [T] where all rows ask for the same ones.
    Returns:
      draws_BT, which draw a token, and keeps_BT, which decide whether a drafted token stays.
    """
    shape = (len(prompts_B), positions_BT.shape[-1])
    counter = (
        positions_BT.expand(shape),
        samples_B[:, None].expand(shape),
        prompts_B[:, None].expand(shape),
        torch.full(shape, step, dtype=torch.int64, device=positions_BT.device),
    )
    signed = seed - 2**64 if seed >= 2**63 else seed  # the same 64 bits
    key = torch.full((), signed, dtype=torch.int64, device=positions_BT.device)
    first, second, third, fourth = philox(counter, key)
    return _uniform(first, second), _uniform(third, fourth)


def _uniform(high: Tensor, low: Tensor) -> Tensor:
    return ((high << 21) | (low >> 11)).double() * 2.0**-53


class TokenStreams:
    """The random numbers of rows that are being decoded, each row at its own position.

    Args:
      seed, step: as in `uniforms`.
      num_rows: rows, whose streams `start` names.
      device: where the numbers are made and used.
    """

    def __init__(self, seed: int, step: int, num_rows: int, device: torch.device) -> None:
        self.seed, self.step = seed, step
        self._prompts_B, self._samples_B, self._first_B = torch.zeros(3, num_rows, dtype=torch.int64, device=device)
        # [draw or keep, row, place counted from the row's first position]
        self._block_2BT = torch.zeros(2, num_rows, POSITIONS_PER_BLOCK, dtype=torch.float64, device=device)
        self._all_B = torch.arange(num_rows, device=device)
        self._num_left = 0

    def start(self, rows_R: Tensor, prompts_R: Tensor, samples_R: Tensor) -> None:
        """Rows begin a rollout: its first token comes next."""
        self._prompts_B[rows_R], self._samples_B[rows_R] = prompts_R, samples_R
        self._refresh(rows_R, torch.zeros_like(rows_R))

    def take(self, positions_B: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Numbers for the `length` places from each row's position on: draws_BT and keeps_BT.

        A row advances by at most the length that it took before it takes again.
        """
        if length > self._num_left:
            if length > self._block_2BT.shape[2]:
                self._block_2BT = self._block_2BT.new_zeros(2, len(self._all_B), length)
            self._refresh(self._all_B, positions_B)
            self._num_left = self._block_2BT.shape[2]
        self._num_left -= length
        places_BT = (positions_B - self._first_B)[:, None] + torch.arange(length, device=positions_B.device)
        draws_BT, keeps_BT = self._block_2BT.gather(2, places_BT.expand(2, -1, -1))
        return draws_BT, keeps_BT

    def select(self, rows_B: Tensor) -> None:
        """Drop rows."""
        self._prompts_B, self._samples_B = self._prompts_B[rows_B], self._samples_B[rows_B]
        self._first_B, self._block_2BT = self._first_B[rows_B], self._block_2BT[:, rows_B]
        self._all_B = self._all_B[: len(rows_B)]

    def _refresh(self, rows_R: Tensor, positions_R: Tensor) -> None:
        places_RT = positions_R[:, None] + torch.arange(self._block_2BT.shape[2], device=positions_R.device)
        draws_RT, keeps_RT = uniforms(self.seed, self.step, self._prompts_B[rows_R], self._samples_B[rows_R], places_RT)
        self._first_B[rows_R] = positions_R
        self._block_2BT[0, rows_R], self._block_2BT[1, rows_R] = draws_RT, keeps_RT
