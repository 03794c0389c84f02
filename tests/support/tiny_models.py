"""Tiny models with real architectures, made on the spot."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from tutelage.models import ModelSet

SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "initializer_range": 0.5,
    "pad_token_id": None,
    "bos_token_id": None,
}

ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3": ("Qwen3", {}),
    "llama": ("Llama", {}),
    "gemma": ("Gemma", {}),
    "gemma2": ("Gemma2", {"sliding_window": 4, "query_pre_attn_scalar": 8}),
    "gemma3": (
        "Gemma3",
        {"sliding_window": 4, "query_pre_attn_scalar": 8, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "mistral": ("Mistral", {"sliding_window": 4}),
}


def make_model(
    architecture: str = "qwen3",
    *,
    vocab_size: int = 40,
    stop_ids: int | list[int] | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    tie: bool = True,
    **shape: Any,
) -> Any:
    """A randomly initialised causal language model, a few thousand parameters large."""
    name, extra = ARCHITECTURES[architecture]
    suffix = "TextConfig" if architecture == "gemma3" else "Config"
    settings = {**SHAPE, **extra, **shape, "vocab_size": vocab_size, "eos_token_id": stop_ids}
    config = getattr(transformers, name + suffix)(**settings, tie_word_embeddings=tie)
    torch.manual_seed(seed)
    model = getattr(transformers, name + "ForCausalLM")(config).to(dtype).eval()
    model.generation_config.eos_token_id = stop_ids
    model.generation_config.pad_token_id = 0
    return model


def pair() -> ModelSet:
    """Two random models of 20 tokens; each of two stop ids ends an answer of the teacher."""
    return ModelSet.of(
        make_model("qwen3", vocab_size=20, stop_ids=7, seed=1),
        make_model("qwen3", vocab_size=20, stop_ids=[8, 7], seed=2),
    )
