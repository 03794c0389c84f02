"""The parts of sharing a step that need no second process."""

from __future__ import annotations

import torch

from tests.support.tiny_models import make_model
from tutelage.runtime.distributed import BUCKET_BYTES, _buckets, _fingerprint


def test_a_changed_bit_is_seen_in_every_type() -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        module = make_model(dtype=dtype)
        before = _fingerprint(module)
        assert before == _fingerprint(make_model(dtype=dtype))
        weight = module.model.norm.weight.data
        weight[0] = torch.nextafter(weight[0], weight[0] + 1)
        assert [name for (name, a), (_, b) in zip(before, _fingerprint(module), strict=True) if a != b] == [
            "model.norm.weight"
        ]


def test_buckets_hold_everything_once_and_one_type_each() -> None:
    large = torch.empty(BUCKET_BYTES // 4 - 1)
    gradients = [torch.zeros(3), large, torch.zeros(2), torch.zeros(2, dtype=torch.float64), torch.zeros(1)]
    buckets = list(_buckets(gradients))
    assert [len(bucket) for bucket in buckets] == [1, 1, 1, 1, 1]
    assert [len(bucket) for bucket in _buckets([torch.zeros(3)] * 4)] == [4]
    assert [id(g) for bucket in buckets for g in bucket] == [id(g) for g in gradients]
    assert all(len({g.dtype for g in bucket}) == 1 for bucket in buckets)
    assert all(sum(g.nbytes for g in bucket) <= BUCKET_BYTES for bucket in buckets)
