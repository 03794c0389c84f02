"""Attention over batches of any sizes: neither the kernel that plans for each of them nor the one that holds scores."""

from __future__ import annotations

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from tests.gpu import NEEDS_CUDA
from tests.support.tiny_models import make_model
from tutelage.models import LanguageModel

pytestmark = NEEDS_CUDA

# Two answers to a prompt that is read once, which needs a mask, and an answer by itself.
SEQUENCES, STARTS = [[1, 2, 3, 4, 5, 6], [1, 2, 3, 7, 8], [9, 9, 9]], [3, 3, 1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("checkpoints", [False, True], ids=["kept", "again"])
@pytest.mark.parametrize("is_fast", [True, False], ids=["ours", "the module's"])
def test_neither_plans_nor_scores(is_fast: bool, checkpoints: bool, dtype: torch.dtype) -> None:
    """Prefill, a step that is not captured, reading and its backward; with heads that share keys."""
    module = make_model("qwen3", stop_ids=7, dtype=dtype, head_dim=16).to("cuda")
    model = LanguageModel(module, checkpoints_gradient=checkpoints, decode_step="eager", fast_forward=is_fast)
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as recorded:  # or PyTorch 2.11 warns
        with torch.no_grad():
            cache = model.prefill(SEQUENCES)
            places = torch.tensor([[6], [5], [3]], device="cuda")
            model.hidden_cached(torch.ones_like(places), places, cache, 7)
        model.enable_grad()
        model.hidden_packed(SEQUENCES, STARTS).float().sum().backward()
    called = {event.key for event in recorded.key_averages() if "attention" in event.key}
    assert any("flash_attention" in name or "efficient_attention" in name for name in called), called
    assert not [name for name in called if "cudnn" in name]
    if is_fast or dtype == torch.bfloat16:  # the module's own forward shares keys in float32, too
        assert not [name for name in called if name.endswith("attention_math")]
