"""Keys and values that lie together: what growing them holds."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import Tensor

from tutelage.models.caches import ContiguousCache, FixedCache


@pytest.mark.parametrize("kind", [ContiguousCache, FixedCache])
def test_growing_holds_one_layer_twice(kind: type[ContiguousCache], monkeypatch: pytest.MonkeyPatch) -> None:
    """The old keys and values of a layer are gone before the next layer grows."""
    cache = kind(4, 2, 8)
    cache.allocate(1, 2, torch.zeros(1))
    cache.memory.captured = [*cache.tensors()]  # as graphs hold them
    cache.tensors()[-1][:] = 5
    olds: list[weakref.ref[Tensor]] = []
    alive: list[int] = []
    grown = kind._grown

    def watched(self: ContiguousCache, states: Tensor) -> Tensor:
        olds.append(weakref.ref(states))
        alive.append(sum(old() is not None for old in olds))
        return grown(self, states)

    monkeypatch.setattr(kind, "_grown", watched)
    cache.reserve(20)
    assert alive == [1, 2] * 4
    assert cache.memory.captured is None and all(each.shape == (2, 1, 20, 2) for each in cache.tensors())
    assert cache.tensors()[-1].unique().tolist() == [0, 5] and not cache.tensors()[0].any()
