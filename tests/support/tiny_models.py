"""Tiny models with real architectures, made on the spot."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from tutelage.models import ModelSet
from tutelage.models.linear_attention import linear_families

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

GATED_DELTA_NET: dict[str, Any] = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}

LINEAR_ATTENTION: dict[str, Any] = {"layer_types": ["linear_attention", "full_attention"], "linear_feature_size": 6}

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
    "qwen3_next": (
        "Qwen3Next",
        {**GATED_DELTA_NET, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
         "shared_expert_intermediate_size": 16},
    ),
    "qwen3_5": ("Qwen3_5", GATED_DELTA_NET),
    "linear_qwen3": ("LinearQwen3", LINEAR_ATTENTION),
    "linear_llama": ("LinearLlama", {**LINEAR_ATTENTION, "linear_kernel": "based"}),
}  # fmt: skip
# Multimodal families, whose text models are what we make.
TEXT_CONFIGS = ("gemma3", "qwen3_5")
# Three of four layers of a hybrid are recurrent; here one of two. Ours compute as wide as the model, others in float32.
NARROW_HYBRIDS = ("qwen3_next", "qwen3_5")
HYBRIDS = (*NARROW_HYBRIDS, "linear_qwen3", "linear_llama")


def named_class(name: str) -> Any:
    """A class of transformers, or of ours."""
    ours = {each.__name__: each for classes in linear_families().values() for each in classes}
    return ours.get(name) or getattr(transformers, name)


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
    suffix = "TextConfig" if architecture in TEXT_CONFIGS else "Config"
    settings = {**SHAPE, **extra, **shape, "vocab_size": vocab_size, "eos_token_id": stop_ids}
    config = named_class(name + suffix)(**settings, tie_word_embeddings=tie)
    torch.manual_seed(seed)
    model = named_class(name + "ForCausalLM")(config).to(dtype).eval()
    if architecture == "qwen3_next" and dtype == torch.float64:
        model.set_experts_implementation("eager")  # the grouped products of experts know no float64
    model.generation_config.eos_token_id = stop_ids
    model.generation_config.pad_token_id = 0
    return model


def rounding(architecture: str) -> dict[str, float]:
    """How far apart two ways to compute logits of a float64 model may be; recurrent layers compute in float32."""
    tolerance = 2e-4 if architecture in NARROW_HYBRIDS else 1e-9
    return {"rtol": tolerance, "atol": tolerance}


def pair() -> ModelSet:
    """Two random models of 20 tokens; each of two stop ids ends an answer of the teacher."""
    return ModelSet.of(
        make_model("qwen3", vocab_size=20, stop_ids=7, seed=1),
        make_model("qwen3", vocab_size=20, stop_ids=[8, 7], seed=2),
    )
