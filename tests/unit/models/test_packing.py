from __future__ import annotations

import pytest
import torch

from tests.support.tiny_models import make_model
from tutelage.models import LanguageModel, packing
from tutelage.models.packing import pack

CPU = torch.device("cpu")


def sequences_with(lengths: list[int]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(len(lengths))
    return [torch.randint(0, 40, (length,), generator=generator).tolist() for length in lengths]


def test_a_shared_head_is_read_once_and_a_long_one_by_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    sequences = [[1, 2, 3, 4], [1, 2, 3, 5, 6], [1, 2, 4, 4], [7, 8]]
    packed = pack(sequences, [3, 3, 2, 0], CPU)
    assert len(packed.tokens_N) == 3 + 1 + 2 + 4 + 2
    assert packed.tokens_N[packed.tails_n].tolist() == [4, 5, 6, 4, 4, 7, 8]
    assert packed.positions_N[packed.tails_n].tolist() == [3, 3, 4, 2, 3, 0, 1]
    monkeypatch.setattr(packing, "MAX_MASK", 1)
    assert len(pack(sequences, [3, 3, 2, 0], CPU).tokens_N) == 4 + 5 + 4 + 2


def test_every_token_is_moved_into_the_blocks_and_back() -> None:
    sequences = sequences_with([5, 17, 1, 9, 30, 9])
    sequences += [[*sequences[1][:12], 3], [*sequences[1][:12], 4, 5]]
    packed = pack(sequences, [0, 12, 0, 4, 29, 9, 12, 12], CPU)  # one sequence has no tail
    states = torch.randn(len(packed.tokens_N), 2, 3, dtype=torch.float64)
    assert torch.equal(packed.layout.outputs(packed.layout.queries(states)), states)
    tails = states[packed.tails_n]
    assert torch.equal(packed.tail_layout.outputs(packed.tail_layout.queries(tails)), tails)


def test_a_move_sums_the_gradients_of_all_real_copies() -> None:
    """Shared tokens are copied once per sequence; the filling after a row's end belongs to none."""
    sequences = [[1, 2, 3, 9, 9, 9], [1, 2, 3, 8], [5, 6]]
    layout = pack(sequences, [3, 3, 1], CPU).layout
    states = torch.randn(9, 1, 2, dtype=torch.float64, requires_grad=True)
    layout.keys(states).sum().backward()
    copies = states.grad[:, 0, 0].tolist()
    assert copies == [3, 3, 3, 1, 1, 1, 1, 1, 1]  # the head itself, and under each of its two tails


@pytest.mark.parametrize("architecture", ["qwen3", "llama"])
@pytest.mark.parametrize("worth", [0, 2**20])
def test_blocks_do_not_change_the_numbers(architecture: str, worth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "WORTH_A_CALL", worth)
    module = make_model(architecture, seed=2)
    sequences = sequences_with([1, 40, 3, 22, 23, 24, 60, 2])
    starts = [0, 39, 1, 0, 11, 24, 5, 2]
    found = LanguageModel(module).hidden_packed(sequences, starts)
    expected = LanguageModel(module, fast_forward=False).hidden_packed(sequences, starts)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_gradients_are_the_same_bits_every_time() -> None:
    model = LanguageModel(make_model("qwen3", seed=2, dtype=torch.float32))
    head = sequences_with([20])[0]
    sequences = [[*head, *tail] for tail in sequences_with([3, 9, 1, 14])]
    found = []
    for _ in range(2):
        model.module.zero_grad()
        model.hidden_packed(sequences, [20] * 4).square().sum().backward()
        found.append([weight.grad.clone() for weight in model.module.base_model.parameters()])
    assert all(torch.equal(first, second) for first, second in zip(*found, strict=True))
