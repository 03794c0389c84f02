from __future__ import annotations

import pytest
import torch

from tutelage.rewards.combinations import MinNorm, Ratings, normalised_in_groups

GROUPS = torch.tensor([0] * 4 + [1] * 4)


def rated(*rows: list[float], weights: list[float] | None = None) -> Ratings:
    labels = "abc"[: len(rows)]
    rewards = {label: torch.tensor(row).double() for label, row in zip(labels, rows, strict=True)}
    return Ratings(rewards, dict(zip(labels, weights or [1.0] * len(rows), strict=True)), GROUPS)


A, B, C = [1.0, 0, 2, 5, 3, 3, 1, 0], [4.0, 0, 1, 5, 0, 1, 2, 3], [1.0, 2, 3, 9, 7, 1, 1, 1]


@pytest.mark.parametrize("positive_only", [True, False])
def test_it_is_the_point_nearest_to_0_between_the_advantages(positive_only: bool) -> None:
    """Against the least square of the convex combinations, on a grid."""
    batch = rated(A, B)
    advantages_KB = torch.stack([normalised_in_groups(values_B, GROUPS) for values_B in batch.rewards.values()])
    if positive_only:
        advantages_KB = advantages_KB.clamp_min(0)
    shares_N1 = torch.linspace(0, 1, 20_001).double()[:, None]
    points_NB = shares_N1 * advantages_KB[0] + (1 - shares_N1) * advantages_KB[1]
    nearest_B = points_NB.gather(0, points_NB.abs().argmin(0, keepdim=True))[0]
    torch.testing.assert_close(MinNorm(positive_only).combine(batch, {}), nearest_B, atol=2e-4, rtol=0)


def test_one_reward_alone_is_its_own_advantage() -> None:
    own_B = normalised_in_groups(torch.tensor(A).double(), GROUPS)
    torch.testing.assert_close(MinNorm(False).combine(rated(A), {}), own_B)
    torch.testing.assert_close(MinNorm().combine(rated(A), {}), own_B.clamp_min(0))


def test_the_order_of_the_rewards_does_not_matter_and_their_scale_does() -> None:
    found_B = MinNorm().combine(rated(A, B, C), {})
    torch.testing.assert_close(MinNorm().combine(rated(C, A, B), {}), found_B)
    assert not torch.allclose(MinNorm().combine(rated(A, B, C, weights=[0.1, 1.0, 1.0]), {}), found_B)


def test_it_exceeds_no_positive_advantage_and_one_of_0_ends_it() -> None:
    batch = rated(A, B, [1.0] * 8)
    assert MinNorm().combine(batch, {}).tolist() == [0.0] * 8, "a reward without spread has advantage 0"
    batch = rated(A, B, C)
    found_B = MinNorm().combine(batch, {})
    for values_B in batch.rewards.values():
        assert bool((found_B <= normalised_in_groups(values_B, GROUPS).clamp_min(0) + 1e-12).all())
    assert float(found_B.min()) == 0 < float(found_B.max())
