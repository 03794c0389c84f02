from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from torch.profiler import ProfilerActivity, profile

from tests.support.reward_models import save_reward_model
from tutelage.models import ModelSource, load_sequence_scorer, load_tokenizer

SHAPE = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 8, "head_dim": 16}


def allocated(work: Callable[[], object]) -> int:
    """Most bytes that tensors hold at once, of those that `work` makes."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work()
    assert profiled.profiler is not None
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        most = max(most, live)
    return most


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("pad", [256, None])
def test_a_reward_model_takes_nearly_what_is_forecast(tmp_path: Path, dtype: str, pad: int | None) -> None:
    """Most of eight texts, of which some are shorter; one at a time where there is no padding id."""
    source = ModelSource(str(save_reward_model(tmp_path / "rm", pad=pad, **SHAPE)), dtype)
    scorer = load_sequence_scorer(source, load_tokenizer(source.path))
    texts = [[5] * 256] * 4 + [[5] * 200] * 4
    scorer.scores(texts[:1], 2048)
    forecast = scorer.reading_bytes(8, 256, 2048)
    assert 0.7 * forecast < allocated(lambda: scorer.scores(texts, 2048)) < forecast
    assert forecast == (8 if pad else 1) * scorer.reading_bytes(1, 256, 2048)
    assert scorer.weight_bytes == sum(weight.nbytes for weight in scorer.module.parameters())
