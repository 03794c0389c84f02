"""What a forward is estimated to cost; recurrent layers read for themselves and must be taken back."""

from __future__ import annotations

import math

import pytest
import torch

from tests.support.tiny_models import make_model
from tutelage.models import LanguageModel, recurrent
from tutelage.rollout.decoding.draft_length import Costs
from tutelage.rollout.decoding.forward_costs import BLOCK_COST, SINGLE_COST, ForwardCosts

ATTENTION = {"layer_types": ["full_attention", "full_attention"]}


def of(architecture: str = "qwen3_5", **shape: object) -> ForwardCosts:
    return ForwardCosts(LanguageModel(make_model(architecture, dtype=torch.float32, **shape)))


def test_attention_takes_nothing_back() -> None:
    for costs in (of("qwen3"), of("gemma2"), of(**ATTENTION)):
        assert costs.taking_back(8, 8, 0.5, is_one_by_one=True) == 0
        assert costs.taking_back(8, 8, 0.5, is_one_by_one=False) == 0


def test_the_module_s_own_forward_costs_more_than_ours() -> None:
    module = make_model("qwen3", dtype=torch.float32)
    ours, own = (ForwardCosts(LanguageModel(module, fast_forward=is_fast)) for is_fast in (True, False))
    assert own.reading(1, 1) > ours.reading(1, 1)


def test_a_recurrent_layer_costs_what_the_way_in_which_it_reads_costs() -> None:
    """Two tokens of one row one after the other, three as a block; up to eight of four rows or more."""
    plain, hybrid = of(**ATTENTION), of()

    def mixing(num_rows: int, num_new: int) -> float:
        computing = (hybrid.num_parameters - plain.num_parameters) * (4 + num_rows * num_new)
        return hybrid.reading(num_rows, num_new) - plain.reading(num_rows, num_new) - computing

    single, block = SINGLE_COST["cpu"], BLOCK_COST["cpu"]
    assert [round(mixing(1, num_new) / single) for num_new in (1, 2)] == [1, 2]
    assert mixing(1, 3) == mixing(1, 64) > block
    assert mixing(1, 65) - mixing(1, 64) == mixing(1, 129) - mixing(1, 128) > 0
    assert round(mixing(4, 8) / single) == 8
    assert mixing(4, 9) == mixing(4, 16) > block


def test_what_is_taken_back_is_what_a_rollout_takes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of L drafts has read n of them in truth with probability s^(n-1) (1-s); known states are only copied."""
    costs = of()
    [layer] = costs.recurrent
    assert costs.taking_back(8, 1, 0.5, is_one_by_one=True) == 0
    assert costs.taking_back(8, 8, 1.0, is_one_by_one=True) == 0
    assert math.isclose(costs.taking_back(1, 8, 0.0, is_one_by_one=True), layer.taken_back(1))
    known = costs.taking_back(8, 8, 0.5, is_one_by_one=False)
    assert known == costs.taking_back(8, 8, 0.5, is_one_by_one=True)  # eight tokens of eight rows: one after the other
    assert known < costs.taking_back(8, 10, 0.5, is_one_by_one=False)  # a block, whose states in between are unknown
    assert math.isclose(
        costs.taking_back(1, 3, 0.0, is_one_by_one=False),
        layer.taken_back(1) + layer.num_parameters * (4 + 1) + layer.one_by_one(1, 1),
    )
    monkeypatch.setattr(recurrent, "KEPT_STATE_BYTES", 0)
    assert known < costs.taking_back(8, 8, 0.5, is_one_by_one=True)


def test_drafts_of_a_hybrid_pay_less_where_many_are_refused_and_states_are_read_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    models = [LanguageModel(make_model("qwen3_5", dtype=torch.float32, seed=seed)) for seed in (0, 1)]

    def cost(length: int, share: float) -> float:
        return Costs(*models, is_measured=False).of_round(8, length, share)

    assert cost(8, 0.5) > cost(8, 0.99)
    before = cost(8, 0.9)
    monkeypatch.setattr(recurrent, "KEPT_STATE_BYTES", 0)
    assert cost(8, 0.9) > before
