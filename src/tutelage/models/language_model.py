"""One causal language model as the engines see it: tokens to hidden states, hidden states to logits.

The two halves are separate because they are used apart: a rollout projects only the last position, and a loss works
through the head in chunks so that `[B, T, V]` never exists.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.errors import ModelError
from tutelage.models.cache import RaggedCache

__all__ = ["LanguageModel", "as_language_model"]


@dataclass
class LanguageModel:
    """A Hugging Face causal language model, its tokenizer and what stops it.

    Fields:
      module: the `transformers` model.
      tokenizer: its tokenizer, or None for a bare model (tests, enumerable worlds).
      stop_ids: every id that ends an answer of this model; the first one is the id it emits.
      name: what to call it in messages.
    """

    module: Any
    tokenizer: Any = None
    stop_ids: tuple[int, ...] = ()
    name: str = "model"
    _head: nn.Module = field(init=False, repr=False)

    def __post_init__(self) -> None:
        head = self.module.get_output_embeddings()
        if head is None:
            raise ModelError(
                f"{self.name} ({type(self.module).__name__}) has no language-model head; a causal language model is "
                "needed. Load it with AutoModelForCausalLM."
            )
        self._head = head

    @property
    def device(self) -> torch.device:
        """Where the head lives; tokens are sent there."""
        return next(self._head.parameters()).device

    @property
    def config(self) -> Any:
        """The text configuration (multimodal models keep it one level down)."""
        return self.module.config.get_text_config()

    @property
    def padded_vocabulary_size(self) -> int:
        """Rows of the head, padding included."""
        return int(next(self._head.parameters()).shape[0])

    @property
    def context_length(self) -> int | None:
        """Most tokens the model was made for, or None if it does not say."""
        length = getattr(self.config, "max_position_embeddings", None)
        return int(length) if length else None

    @property
    def known_ids(self) -> list[int]:
        """Ids that stand for a token; the others are padding of the embedding table."""
        if self.tokenizer is None:
            return list(range(self.padded_vocabulary_size))
        return sorted({i for i in self.tokenizer.get_vocab().values() if i < self.padded_vocabulary_size})

    def new_cache(self) -> RaggedCache:
        """An empty cache; it takes its shape from the first forward."""
        return RaggedCache(int(self.config.num_hidden_layers))

    def hidden(self, tokens_BT: Tensor) -> Tensor:
        """Final hidden states [B, T, D] of right-padded sequences, without a cache.

        No mask is needed: attention is causal, and what a padding position computes is never read.
        """
        output = self.module.base_model(input_ids=tokens_BT, use_cache=False)
        return output.last_hidden_state

    def hidden_cached(
        self, tokens_BT: Tensor, positions_BT: Tensor, cache: RaggedCache, extent: int, *, is_prefill: bool = False
    ) -> Tensor:
        """Final hidden states [B, T, D] of new tokens at their own positions, reading and filling the cache.

        Args:
          tokens_BT, positions_BT: new tokens of every row and the slots they take.
          extent: number of leading slots any query may look at (1 + the largest position so far).
          is_prefill: positions are 0..T-1 in every row.
        """
        cache.begin(positions_BT, extent, is_prefill=is_prefill)
        output = self.module.base_model(
            input_ids=tokens_BT,
            position_ids=positions_BT,
            attention_mask=self._masks(positions_BT, extent),
            past_key_values=cache,
            use_cache=True,
        )
        return output.last_hidden_state

    def logits(self, hidden: Tensor) -> Tensor:
        """Head and final soft-capping: [..., D] -> [..., padded V], in the model's type."""
        logits: Tensor = self._head(hidden)
        cap = getattr(self.config, "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def _masks(self, positions_BT: Tensor, extent: int) -> Tensor | dict[str, Tensor]:
        """What each query may see: every slot up to its own position, or the last `window` of them."""
        slots_S = torch.arange(extent, device=positions_BT.device)
        causal_BTS = slots_S <= positions_BT[..., None]
        window = getattr(self.config, "sliding_window", None)
        layer_types = set(getattr(self.config, "layer_types", None) or ())
        if window is None or (layer_types and "sliding_attention" not in layer_types):
            return self._as_mask(causal_BTS)
        sliding_BTS = causal_BTS & (slots_S > positions_BT[..., None] - window)
        if not layer_types:
            return self._as_mask(sliding_BTS)
        return {"full_attention": self._as_mask(causal_BTS), "sliding_attention": self._as_mask(sliding_BTS)}

    def _as_mask(self, allowed_BTS: Tensor) -> Tensor:
        allowed_B1TS = allowed_BTS[:, None]
        if self.config._attn_implementation != "eager":
            return allowed_B1TS
        # Eager attention adds its mask to the scores.
        dtype = self.module.dtype
        return torch.zeros_like(allowed_B1TS, dtype=dtype).masked_fill_(~allowed_B1TS, torch.finfo(dtype).min)


def as_language_model(model: Any, name: str = "model") -> LanguageModel:
    """Accept a LanguageModel, or wrap a bare `transformers` model with the stop ids of its configuration."""
    if isinstance(model, LanguageModel):
        return model
    return LanguageModel(model, stop_ids=stop_ids_of(model), name=name)


def stop_ids_of(module: Any, tokenizer: Any = None) -> tuple[int, ...]:
    """Every id that ends an answer: the tokenizer's first, then those of the generation and model configurations."""
    candidates: list[int] = []
    for source in (tokenizer, getattr(module, "generation_config", None), module.config):
        candidates.extend(_ids(getattr(source, "eos_token_id", None)))
    return tuple(dict.fromkeys(candidates))


def _ids(value: int | Iterable[int] | None) -> list[int]:
    if value is None:
        return []
    assert not isinstance(value, Mapping)
    return [int(value)] if isinstance(value, int) else [int(item) for item in value]
