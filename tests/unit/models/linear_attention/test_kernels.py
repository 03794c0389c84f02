"""Kernels: a number and a product of features are the same, and the shapes that the papers give them."""

from __future__ import annotations

import pytest
import torch

from tutelage.models.linear_attention import KERNELS, Based, Kernel, ReBased

each_kernel = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)


@each_kernel
@pytest.mark.parametrize("size", [1, 2, 5, 16])
def test_features_give_the_kernel(kernel: Kernel, size: int) -> None:
    torch.manual_seed(0)
    queries, keys = torch.randn(2, 7, size, dtype=torch.float64)
    weights = kernel.weights(queries @ keys.T / size**0.5)
    features = kernel.features(queries)
    assert features.shape[-1] == kernel.num_features(size)
    torch.testing.assert_close(features @ kernel.features(keys).T, weights, rtol=1e-12, atol=1e-12)


def test_minima_and_symmetry() -> None:
    """Based cannot give a token no weight; ReBased can, and cannot tell a key from its opposite."""
    scores = torch.linspace(-4, 4, 801, dtype=torch.float64)
    weights = Based().weights(scores)
    assert float(weights.min()) == pytest.approx(0.5) and float(scores[weights.argmin()]) == pytest.approx(-1)
    assert float(ReBased().weights(scores).min()) == pytest.approx(0)
    torch.testing.assert_close(ReBased().weights(scores), ReBased().weights(-scores))


def test_the_number_of_features_is_that_of_the_papers_code_with_equal_products_once() -> None:
    assert (ReBased().num_features(16), Based().num_features(16)) == (136, 153)
