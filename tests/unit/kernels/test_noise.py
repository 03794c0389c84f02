"""Random words."""

from __future__ import annotations

import torch

from tutelage.kernels import noise


def test_philox_matches_the_published_vectors() -> None:
    """Known answers that come with Random123, the authors' implementation (Salmon et al. 2011)."""

    def words(counter: list[int], key_low: int, key_high: int) -> list[int]:
        key = key_low | (key_high << 32)
        signed = key - 2**64 if key >= 2**63 else key
        parts = tuple(torch.tensor([part]) for part in counter)
        return [int(word) for word in noise.philox(parts, torch.tensor([signed]))]

    assert words([0, 0, 0, 0], 0, 0) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    counter, key = [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], (0xA4093822, 0x299F31D0)
    assert words(counter, *key) == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]
    ones = 0xFFFFFFFF
    assert words([ones] * 4, ones, ones) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
