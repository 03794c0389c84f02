"""What every decode step keeps: the hidden states of the eager one up to rounding, and the same cache afterwards.

A new member joins by its line in `STEPS`. One that is made here shows what a member has to write.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.support.tiny_models import make_model
from tutelage.models import LanguageModel
from tutelage.models.caches import KVCache
from tutelage.models.steps import STEPS, DecodeStep, EagerStep


class PaddedStep(DecodeStep):
    """A member of its own: rows and new tokens in powers of two and slots in sixteens, as captured graphs want them.

    Padding repeats the last row, and the last new token of each row.
    """

    def __init__(self, forward: object) -> None:
        super().__init__(forward)  # type: ignore[arg-type]
        self.shapes: set[tuple[int, int, int]] = set()

    def slots(self, num_slots: int) -> int:
        return -(-num_slots // 16) * 16

    def new_cache(self, num_layers: int, num_rows: int, capacity: int, max_capacity: int | None) -> KVCache:
        return super().new_cache(num_layers, num_rows, capacity, None)

    def run(self, tokens_BT: Tensor, positions_BT: Tensor, cache: KVCache, num_visible: int) -> Tensor:
        num_rows, num_new = tokens_BT.shape
        rows, new = (torch.arange(1 << (n - 1).bit_length()).clamp_max(n - 1) for n in (num_rows, num_new))
        self.shapes.add((len(rows), len(new), num_visible))
        cache.select(rows)
        hidden_BTE = self.forward.decode(tokens_BT[rows][:, new], positions_BT[rows][:, new], cache, num_visible)
        cache.select(torch.arange(num_rows))
        return hidden_BTE[:num_rows, :num_new]


MEMBERS = {**STEPS, "made here": PaddedStep}
NAMED = [
    pytest.param(kind, id=name, marks=[pytest.mark.compiles] * (name == "compiled")) for name, kind in MEMBERS.items()
]


@torch.no_grad()
def decoded(step: DecodeStep) -> list[Tensor]:
    """Hidden states of a few forwards: ragged rows, a rollback, growth over many slots, a dropped row.

    One compilation serves: rows and new tokens are more than one throughout, and no two sizes are equal at first.
    """
    generator = torch.Generator().manual_seed(0)
    cache = step.new_cache(2, 5, 4, 100)
    step.forward.allocate(cache, None)
    step.forward.fill([[1, 2, 3], [4], [5, 6], [], [7]], torch.arange(5), cache)
    found = []
    for starts in ([3, 1, 2, 0, 1], [4, 3, 2, 3, 1], [62, 5, 3, 6, 2], [70, 5, 9], [64, 7, 9]):
        if len(starts) < cache.num_rows:
            cache.select(torch.tensor([0, 1, 3]))
        tokens_BT = torch.randint(40, (len(starts), 3), generator=generator)
        positions_BT = torch.tensor(starts)[:, None] + torch.arange(3)
        found.append(step(tokens_BT, positions_BT, cache, int(positions_BT.max()) + 1))
    return found


@pytest.mark.parametrize("kind", NAMED)
def test_every_step_equals_the_eager_one(kind: type[DecodeStep]) -> None:
    forward = LanguageModel(make_model("qwen3", seed=4, dtype=torch.float32))._forward
    for found, expected in zip(decoded(kind(forward)), decoded(EagerStep(forward)), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_model_runs_the_step_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the eager one where a gradient is wanted."""
    monkeypatch.setitem(STEPS, "compiled", PaddedStep)
    module = make_model("qwen3", seed=4)
    tokens_BT, positions_BT = torch.tensor([[5, 6], [7, 8], [9, 9]]), torch.tensor([[3, 4], [1, 2], [0, 1]])
    found = []
    for model in (LanguageModel(module), LanguageModel(module, compile=True)):
        for wants_gradient in (False, True):
            cache = model.prefill([[1, 2, 3], [4], []])
            with torch.set_grad_enabled(wants_gradient):
                found.append(model.hidden_cached(tokens_BT, positions_BT, cache, 5))
            assert found[-1].requires_grad is wants_gradient
            torch.testing.assert_close(found[-1], found[0], rtol=1e-9, atol=1e-9)
    steps = [step for step in model._steps.values() if isinstance(step, PaddedStep)]
    assert [step.shapes for step in steps] == [{(4, 2, 16)}]


@pytest.mark.parametrize("kind", MEMBERS.values(), ids=MEMBERS)
def test_rounding_up_loses_no_slot(kind: type[DecodeStep]) -> None:
    step = kind(LanguageModel(make_model("qwen3"))._forward)
    for num_slots in (0, 1, 63, 64, 65, 1000):
        bound = num_slots + max(64, num_slots / 4)
        assert num_slots <= step.slots(num_slots) == step.slots(step.slots(num_slots)) <= bound
