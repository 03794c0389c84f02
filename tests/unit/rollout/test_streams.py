from __future__ import annotations

import torch

from tutelage.demo import reference_loop
from tutelage.rollout import derive_seed, uniforms
from tutelage.rollout.streams import TokenStreams, philox


def words(counter: list[int], seed: int) -> list[int]:
    return [int(word) for word in philox(tuple(torch.tensor([c]) for c in counter), seed)]


def test_philox_matches_the_published_vectors() -> None:
    """Known-answer vectors that ship with Random123 (Salmon et al. 2011), philox4x32-10."""
    assert words([0, 0, 0, 0], 0) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    full = 0xFFFFFFFF
    assert words([full] * 4, (full << 32) | full) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    counter, key = [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], (0x299F31D0 << 32) | 0xA4093822
    assert words(counter, key) == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]


def test_uniforms_equal_the_reference_loops_scalar_form() -> None:
    draws, keeps = uniforms(2**40 + 17, 3, torch.tensor([0, 5]), torch.tensor([1, 2]), torch.tensor([0, 9, 64]))
    for row, (prompt, sample) in enumerate(((0, 1), (5, 2))):
        for column, position in enumerate((0, 9, 64)):
            expected = reference_loop.uniforms(2**40 + 17, 3, prompt, sample, position)
            assert (draws[row, column].item(), keeps[row, column].item()) == expected


def test_uniforms_are_uniform_and_uncorrelated() -> None:
    draws, keeps = uniforms(1, 0, torch.arange(200), torch.zeros(200, dtype=torch.int64), torch.arange(200))
    for block in (draws, keeps):
        assert block.min() >= 0 and block.max() < 1
        assert abs(block.mean() - 0.5) < 0.006  # 4 standard errors of 40,000 draws
        assert abs(block.var() - 1 / 12) < 0.002
        assert abs(torch.corrcoef(block[:, :2].T)[0, 1]) < 0.3
    assert abs(torch.corrcoef(torch.stack([draws.flatten(), keeps.flatten()]))[0, 1]) < 0.02


def test_streams_of_rows_are_the_uniforms_of_their_places() -> None:
    """Rows at different places, started at different times, over several blocks and a dropped row."""
    streams = TokenStreams(seed=5, step=2, num_rows=3, device=torch.device("cpu"))
    rows = torch.arange(3)
    prompts, samples, places = torch.tensor([4, 0, 9]), torch.tensor([1, 1, 0]), torch.zeros(3, dtype=torch.int64)
    streams.start(rows, prompts, samples)
    generator = torch.Generator().manual_seed(0)
    for round_number in range(60):
        if round_number == 20:  # the middle row begins another rollout
            prompts[1], samples[1], places[1] = 7, 3, 0
            streams.start(torch.tensor([1]), prompts[1:2], samples[1:2])
        if round_number == 40:
            kept = torch.tensor([0, 2])
            streams.select(kept)
            prompts, samples, places = prompts[kept], samples[kept], places[kept]
        length = int(torch.randint(1, 8, (), generator=generator))
        draws, keeps = streams.take(places, length)
        expected = uniforms(5, 2, prompts, samples, places[:, None] + torch.arange(length))
        assert torch.equal(draws, expected[0]) and torch.equal(keeps, expected[1])
        places = places + torch.randint(0, length + 1, places.shape, generator=generator)


def test_seeds_of_other_purposes_differ() -> None:
    seeds = {derive_seed(seed, purpose) for seed in range(50) for purpose in ("evaluation/a", "evaluation/b", "order")}
    assert len(seeds) == 150
    assert all(0 <= seed < 2**64 for seed in seeds)
