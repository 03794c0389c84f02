from __future__ import annotations

import torch

from tutelage.demo import reference_loop
from tutelage.rollout import derive_seed, uniforms
from tutelage.rollout.decoding.streams import TokenStreams


def test_uniforms_equal_the_reference_loops_scalar_form() -> None:
    for seed in (2**40 + 17, 2**64 - 3):
        draws, keeps = uniforms(seed, 3, torch.tensor([0, 5]), torch.tensor([1, 2]), torch.tensor([0, 9, 64]))
        for row, (prompt, sample) in enumerate(((0, 1), (5, 2))):
            for column, position in enumerate((0, 9, 64)):
                expected = reference_loop.uniforms(seed, 3, prompt, sample, position)
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
