"""Over what a loss on sampled tokens is averaged, by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.support.groups import group_batch
from tutelage.errors import ConfigurationError
from tutelage.losses.normalisers import normaliser_factors
from tutelage.losses.tokens import PolicyGradient

BATCH = group_batch([1.0, -1.0], lengths=[2, 6])
VALUES = torch.tensor([1.0] * 2 + [-1.0] * 6).double()


def mean(name: str, tokens: int, weights: Tensor) -> float:
    factors = normaliser_factors(name, tokens, BATCH, weights)
    values = VALUES if factors is None else factors * VALUES
    return float((weights * values).sum() / weights.sum())


@pytest.mark.parametrize(
    ("name", "tokens", "expected"),
    [("sequence_mean", 0, 0.0), ("token_mean", 0, -0.5), ("constant", 10, -0.2), ("sequence_sum", 0, -2.0)],
)
def test_numbers_by_hand(name: str, tokens: int, expected: float) -> None:
    assert mean(name, tokens, torch.ones(8)) == pytest.approx(expected)


def test_means_over_tokens_and_over_answers_agree_where_answers_are_as_long() -> None:
    """DAPO with GRPO's bounds is then GRPO."""
    batch, weights = group_batch([1.0, 0.0, 2.0], lengths=[4, 4, 4]), torch.ones(12)
    factors = normaliser_factors("sequence_mean", 0, batch, weights)
    assert factors is not None and factors.tolist() == pytest.approx([1.0] * 12)


def test_weights_count_as_parts_of_tokens() -> None:
    weights = torch.tensor([1.0, 0.5, 0, 0, 2.0, 0, 0, 0]).double()
    assert mean("sequence_mean", 0, weights) == pytest.approx(0)
    assert mean("sequence_sum", 0, weights) == pytest.approx((1.5 - 2) / 2)
    assert mean("constant", 10, weights) == pytest.approx((1.5 - 2) / 20)
    nothing = torch.tensor([1.0] * 2 + [0.0] * 6)
    assert mean("sequence_mean", 0, nothing) == pytest.approx(0.5), "an answer without weight counts, as 0"


def test_an_answer_without_tokens_counts_as_one() -> None:
    batch = group_batch([1.0, 1.0, 1.0], lengths=[2, 0, 2])
    factors = normaliser_factors("sequence_mean", 0, batch, torch.ones(4))
    assert factors is not None and factors.tolist() == pytest.approx([4 / (3 * 2)] * 4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"normaliser": "local"}, r"loss\.normaliser is 'local'; expected one of token_mean, sequence_mean"),
        ({"normaliser": "constant"}, r"'constant' needs a number of tokens above 0"),
        ({"normaliser_tokens": 10}, r"no other normaliser has one"),
        ({"normaliser": "constant", "normaliser_tokens": -1}, r"loss\.normaliser_tokens -1"),
    ],
)
def test_impossible_fields_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        PolicyGradient(**fields)  # type: ignore[arg-type]
