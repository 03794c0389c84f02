"""Models whose rotary factors switch with the length of a text."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from tests.support.tiny_models import SHAPE

SWITCH = 24
LONG = [8.0, 4.0, 2.0, 1.5]


def longrope(long_factor: list[float] | None = None) -> dict[str, Any]:
    return {
        "rope_type": "longrope",
        "rope_theta": 10_000.0,
        "short_factor": [1.0] * 4,
        "long_factor": LONG if long_factor is None else long_factor,
        "original_max_position_embeddings": SWITCH,
        "factor": 16.0,
    }


def phi3(rope: dict[str, Any] | None = None, seed: int = 0, **shape: Any) -> Any:
    """A Phi-3 whose rotary factors switch at 24 tokens; those of real ones do at 4,096."""
    settings = {**SHAPE, "pad_token_id": 0, "vocab_size": 40, "eos_token_id": None, "sliding_window": None} | shape
    del settings["head_dim"]
    config = transformers.Phi3Config(
        **settings,
        original_max_position_embeddings=SWITCH,
        rope_parameters=rope or longrope(),
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    return transformers.Phi3ForCausalLM(config).double().eval()
