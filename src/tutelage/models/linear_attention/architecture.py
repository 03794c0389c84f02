"""The models that have such layers: a family of `transformers`, some of whose layers are linear.

`LinearQwen3ForCausalLM` is a Qwen3 whose layers of type "linear_attention" (`config.layer_types`) have a
`LinearAttention` in the place of their softmax attention, and so for Llama, Mistral and Qwen2. All else, names of
weights included, is the family's. The classes are registered with `AutoConfig` and `AutoModelForCausalLM` when this
module is imported, so what they save is opened without code from its folder.

Axis letters: B rows, T tokens, E width of the model.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.cache_utils import DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast

from tutelage.models.linear_attention.attention import LinearAttention

__all__ = ["LINEAR_LAYER_TYPE", "LinearDecoderLayer", "is_linear_student", "linear_families"]

LINEAR_LAYER_TYPE, SOFTMAX_LAYER_TYPE = "linear_attention", "full_attention"
MODEL_TYPE_PREFIX = "linear_"
# What a configuration has beside its family's: the kernel, and the entries of a query or key that it sees.
DEFAULT_KERNEL, DEFAULT_FEATURE_SIZE = "rebased", 16
FAMILIES = ("Llama", "Mistral", "Qwen2", "Qwen3")


class LinearDecoderLayer(GradientCheckpointingLayer):
    """A layer of the family with linear attention; norms and feed-forward part are taken from one with softmax."""

    def __init__(self, layer: Any, rotary: Any, config: Any, layer_idx: int) -> None:
        super().__init__()
        self.linear_attn = LinearAttention(layer.self_attn, rotary, config, layer_idx)
        self.mlp = layer.mlp
        self.input_layernorm, self.post_attention_layernorm = layer.input_layernorm, layer.post_attention_layernorm

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **_: Any,
    ) -> Tensor:
        """Hidden states [B, T, E] after the layer."""
        mixed = self.linear_attn(
            self.input_layernorm(hidden_states), cache_params=past_key_values, attention_mask=attention_mask
        )
        hidden_states = hidden_states + mixed
        output: Tensor = hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))
        return output


class _StateCache(DynamicCache):
    """What `generate` gets where every layer is linear: its own cache asks an attention layer how far it is."""

    def __init__(self, config: Any) -> None:
        super().__init__(config=config)
        self.num_columns = 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.num_columns

    @property
    def is_compileable(self) -> bool:
        return False


class _Decoder:
    """What a family's decoder gets where some of its layers are linear."""

    layers: nn.ModuleList
    config: Any
    embed_tokens: Any
    rotary_emb: Any
    norm: Any

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        for place, kind in enumerate(config.layer_types):
            if kind == LINEAR_LAYER_TYPE:
                self.layers[place] = LinearDecoderLayer(self.layers[place], self.rotary_emb, config, place)
        self.post_init()  # type: ignore[attr-defined]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """As the family's own, with a mask for each kind of layer."""
        hidden = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if use_cache and past_key_values is None:
            past_key_values = _cache_of(self.config)
        masks = attention_mask if isinstance(attention_mask, dict) else {LINEAR_LAYER_TYPE: attention_mask}
        positions = None
        if SOFTMAX_LAYER_TYPE in self.config.layer_types:
            if position_ids is None:
                num_seen = 0 if past_key_values is None else past_key_values.get_seq_length()
                position_ids = (torch.arange(hidden.shape[1], device=hidden.device) + num_seen)[None]
            if SOFTMAX_LAYER_TYPE not in masks:
                masks[SOFTMAX_LAYER_TYPE] = create_causal_mask(
                    config=self.config,
                    inputs_embeds=hidden,
                    attention_mask=attention_mask,
                    past_key_values=past_key_values,
                    position_ids=position_ids,
                )
            positions = self.rotary_emb(hidden, position_ids)
        for layer, kind in zip(self.layers, self.config.layer_types, strict=True):
            hidden = layer(
                hidden,
                attention_mask=masks.get(kind),
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
                position_embeddings=positions,
                **kwargs,
            )
        if isinstance(past_key_values, _StateCache):
            past_key_values.num_columns += hidden.shape[1]
        return BaseModelOutputWithPast(
            last_hidden_state=self.norm(hidden), past_key_values=past_key_values if use_cache else None
        )


class _CausalLanguageModel:
    """What a family's causal language model gets where some of its layers are linear."""

    decoder_class: Any
    config: Any

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        self.model = self.decoder_class(config)
        self.post_init()  # type: ignore[attr-defined]

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As the family's own, with a cache that has states where layers are linear."""
        if kwargs.get("use_cache", True):
            kwargs.setdefault("past_key_values", _cache_of(self.config))
        return super().generate(*args, **kwargs)  # type: ignore[misc]


def _cache_of(config: Any) -> DynamicCache:
    return DynamicCache(config=config) if SOFTMAX_LAYER_TYPE in config.layer_types else _StateCache(config)


def _registered(family: str) -> tuple[type[Any], type[Any]]:
    """Configuration and causal language model of a family with linear layers, known to the automatic classes."""
    own, whole, decoder = (getattr(transformers, family + suffix) for suffix in ("Config", "ForCausalLM", "Model"))
    config_class: Any = type(
        f"Linear{family}Config",
        (own,),
        {
            "__module__": __name__,
            "__doc__": f"A {family}Config with `layer_types`, `linear_kernel` and `linear_feature_size`.",
            "__annotations__": {
                "layer_types": list[str] | None,
                "linear_kernel": str,
                "linear_feature_size": int,
            },
            "model_type": MODEL_TYPE_PREFIX + own.model_type,
            "layer_types": None,
            "linear_kernel": DEFAULT_KERNEL,
            "linear_feature_size": DEFAULT_FEATURE_SIZE,
        },
    )
    decoder_class = type(
        f"Linear{family}Model", (_Decoder, decoder), {"__module__": __name__, "config_class": config_class}
    )

    model_class: Any = type(
        f"Linear{family}ForCausalLM",
        (_CausalLanguageModel, whole),
        {"__module__": __name__, "config_class": config_class, "decoder_class": decoder_class},
    )
    AutoConfig.register(config_class.model_type, config_class)
    AutoModelForCausalLM.register(config_class, model_class)
    return config_class, model_class


_CLASSES = {getattr(transformers, f"{family}Config").model_type: _registered(family) for family in FAMILIES}


def linear_families() -> dict[str, tuple[type[Any], type[Any]]]:
    """Model type of a softmax family -> configuration and causal language model of the same with linear layers."""
    return dict(_CLASSES)


def is_linear_student(config: Any) -> bool:
    """Whether this is the configuration of a model with linear layers of ours."""
    return any(isinstance(config, config_class) for config_class, _ in _CLASSES.values())
