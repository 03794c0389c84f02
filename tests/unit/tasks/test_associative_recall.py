"""Associative recall: rows as the papers draw them, and problems in words whose answers can be read off."""

from __future__ import annotations

import json
import re

import pytest
import torch

from tutelage.errors import ConfigurationError
from tutelage.tasks import IGNORED, AssociativeRecall, recall_lines, verify

TASK = AssociativeRecall(num_pairs=4, length=20, vocabulary=24)


def test_rows_are_pairs_and_then_queries_with_their_values() -> None:
    tokens_BT, labels_BT = TASK.draw(300, torch.Generator().manual_seed(0))
    assert tokens_BT.shape == labels_BT.shape == (300, 20)
    for tokens, labels in zip(tokens_BT.tolist(), labels_BT.tolist(), strict=True):
        value_of = dict(zip(tokens[0:8:2], tokens[1:8:2], strict=True))
        assert len(value_of) == 4 == len(set(value_of.values()))
        assert all(1 <= key < 12 <= value < 24 for key, value in value_of.items())
        asked = {place: label for place, label in enumerate(labels) if label != IGNORED}
        assert all(place >= 8 and place % 2 == 0 for place in asked)
        assert {tokens[place]: label for place, label in asked.items()} == value_of
        assert all(token == 0 for place, token in enumerate(tokens[8:], start=8) if place not in asked)


@pytest.mark.parametrize(("gap_power", "is_early"), [(0.01, True), (1.0, False)])
def test_gaps_are_short_or_all_alike(gap_power: float, is_early: bool) -> None:
    """Of six places, the first one is asked at in nearly every row, or in four of six."""
    task = AssociativeRecall(4, 20, 24, gap_power)
    _, labels_BT = task.draw(2000, torch.Generator().manual_seed(1))
    shares = (labels_BT[:, 8::2] != IGNORED).double().mean(0)
    assert float(shares.sum()) == pytest.approx(4)
    assert shares[0] > 0.85 > 0.55 > shares[-1] if is_early else (shares - 4 / 6).abs().max() < 0.05


def test_a_generator_decides_the_rows() -> None:
    first, same, other = (TASK.draw(5, torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2))
    assert torch.equal(first, same) and not torch.equal(first, other)


@pytest.mark.parametrize("sizes", [(0, 20, 24), (6, 20, 24), (4, 21, 24), (4, 20, 8)])
def test_pairs_that_do_not_fit_are_refused(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ConfigurationError, match="expected"):
        AssociativeRecall(*sizes)


def test_problems_in_words() -> None:
    rows = [json.loads(line) for line in recall_lines(40, seed=3, num_pairs=6).splitlines()]
    assert len({row["id"] for row in rows}) == 40
    for row in rows:
        pairs = dict(re.findall(r"(\w+) (\d\d)[,.]", row["problem"]))
        (asked,) = re.findall(r"What goes with (\w+)\?", row["problem"])
        assert len(pairs) == 6 and pairs[asked] == row["answer"]
    assert verify("exact", rows[0]["answer"], rows[0]["answer"]) and not verify("exact", "none", rows[0]["answer"])
    assert recall_lines(3, seed=3) == recall_lines(3, seed=3) != recall_lines(3, seed=4)
    with pytest.raises(ConfigurationError, match="num_pairs is 91"):
        recall_lines(1, seed=0, num_pairs=91)
