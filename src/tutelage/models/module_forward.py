"""The forward of a `transformers` module itself, which serves every architecture that our own does not know.

Recurrent layers (gated delta nets) are called through `recurrent.Mixers`, which hand them their states and keep those
after. In a prefill, rows of one length go through such a layer together and without padding, which would change their
states; whatever works on single tokens, and attention, sees all rows at once.

Axis letters: B rows, T new tokens of each row, S slots, R some of the rows, E width of the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers.cache_utils import Cache, CacheLayerMixin

from tutelage.models.attention import without_plans
from tutelage.models.caches import CacheView, ContiguousCache, HybridCache, KVCache
from tutelage.models.context import context_length_in
from tutelage.models.recurrent import Mixers

__all__ = ["ModuleForward"]


class ModuleForward:
    """The decoder of `module` as it computes itself; see `Forward`."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.mixers = Mixers.of(module.base_model)

    @property
    def cache_kind(self) -> type[KVCache]:
        """See `Forward`."""
        return HybridCache if self.mixers else ContiguousCache

    def allocate(self, cache: KVCache, dtype: torch.dtype | None) -> None:
        """Nothing: what a layer stores is seen when it is first written."""

    def prepare(self, num_positions: int) -> None:
        """Nothing."""

    def tensors(self) -> list[Tensor]:
        """See `Forward`."""
        return list(self.module.base_model.parameters())

    def decode(self, tokens_BT: Tensor, positions_BT: Tensor, cache: KVCache, num_visible: int) -> Tensor:
        """See `Forward`."""
        if not self.mixers:
            return self._decode(tokens_BT, positions_BT, cache, num_visible)
        assert isinstance(cache, HybridCache)
        self._check_continued(cache, positions_BT[:, 0].cpu())
        with self.mixers.reading_on(cache):
            hidden_BTE = self._decode(tokens_BT, positions_BT, cache, num_visible)
        cache.num_since += tokens_BT.shape[1]
        return hidden_BTE

    def _decode(self, tokens_BT: Tensor, positions_BT: Tensor, cache: KVCache, num_visible: int) -> Tensor:
        view = cache.begin(positions_BT, num_visible)
        output = self.module.base_model(
            input_ids=tokens_BT,
            position_ids=positions_BT,
            attention_mask=self._masks(view),
            past_key_values=_ModuleCache(view),
            use_cache=True,
        )
        hidden_BTE: Tensor = output.last_hidden_state
        return hidden_BTE

    def _check_continued(self, cache: HybridCache, firsts_B: Tensor) -> None:
        expected_B = cache.lengths_B + cache.num_since
        if (longest := context_length_in(self.module.config.get_text_config())) is not None:
            # What runs over the end of the context repeats the last position, and is dropped.
            expected_B = expected_B.clamp_max(longest - 1)
        assert torch.equal(firsts_B, expected_B), (
            f"rows of {expected_B.tolist()} tokens are read on from {firsts_B.tolist()}, but a state takes nothing "
            "back; call `roll_back` first"
        )

    def fill(self, sequences: Sequence[Sequence[int]], rows_R: Tensor, cache: KVCache) -> None:
        """See `Forward`."""
        tokens_RT = _padded(sequences, rows_R.device)
        num_rows, num_slots = tokens_RT.shape
        positions_T = torch.arange(num_slots, device=rows_R.device)
        part = cache.empty(num_rows, num_slots)
        lengths_R = torch.tensor([len(sequence) for sequence in sequences])
        with self.mixers.reading_whole(lengths_R) as states, without_plans(rows_R.device):
            self._decode(tokens_RT, positions_T.expand(num_rows, -1), part, num_slots)
        if isinstance(part, HybridCache):
            part.fill(states, lengths_R)
        cache.copy_rows(part, torch.arange(num_rows, device=rows_R.device), rows_R)

    def read(
        self,
        sequences: Sequence[Sequence[int]],
        starts: Sequence[int],
        device: torch.device,
        *,
        checkpoints: bool = False,
        compiles: bool = False,
    ) -> Tensor:
        """See `Forward`; cannot be compiled."""
        assert not compiles
        # No mask is needed: attention and states are causal, and what a padding position computes is never read.
        with checkpointing(self.module) if checkpoints else nullcontext(), without_plans(device):
            output = self.module.base_model(input_ids=_padded(sequences, device), use_cache=False)
        rows = zip(output.last_hidden_state, sequences, starts, strict=True)
        return torch.cat([hidden_TE[start : len(sequence)] for hidden_TE, sequence, start in rows])

    def _masks(self, view: CacheView) -> Tensor | dict[str, Tensor]:
        """What each query may see: every slot up to its own position, or the last `window` of them."""
        config = self.module.config.get_text_config()
        window = getattr(config, "sliding_window", None)
        layer_types = set(getattr(config, "layer_types", None) or ())
        if window is None or (layer_types and "sliding_attention" not in layer_types):
            return self._as_mask(view.visible_BTS(), config)
        sliding = self._as_mask(view.visible_BTS(window), config)
        if not layer_types:
            return sliding
        return {"full_attention": self._as_mask(view.visible_BTS(), config), "sliding_attention": sliding}

    def _as_mask(self, visible_BTS: Tensor, config: Any) -> Tensor:
        visible_B1TS = visible_BTS[:, None]
        if config._attn_implementation != "eager":
            return visible_B1TS
        # Eager attention adds its mask to the scores.
        dtype = self.module.dtype
        return torch.zeros_like(visible_B1TS, dtype=dtype).masked_fill_(~visible_B1TS, torch.finfo(dtype).min)


class _ModuleCache(Cache):
    """A view of one of our caches in the form that the layers of `transformers` write to and read from."""

    def __init__(self, view: CacheView) -> None:
        super().__init__(layers=[_ModuleLayer(view, i) for i in range(view.cache.num_layers)])


class _ModuleLayer(CacheLayerMixin):
    is_sliding = False

    def __init__(self, view: CacheView, layer: int) -> None:
        super().__init__()
        self.view, self.layer, self.is_initialized = view, layer, True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return self.view.update(self.layer, key_states.transpose(1, 2), value_states.transpose(1, 2))

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None: ...

    def get_seq_length(self) -> int:
        return self.view.num_visible

    def get_max_length(self) -> int:
        return -1

    def get_max_cache_shape(self) -> int:  # the name before transformers 5.20
        return -1

    def get_mask_sizes(self, query_length: Any) -> tuple[int, int]:
        return self.view.num_visible, 0


@contextmanager
def checkpointing(module: Any) -> Iterator[None]:
    """Let the layers of a `transformers` model keep their inputs only, for the forwards made inside.

    `transformers` itself does so in training mode alone, which would also turn dropout on.
    """
    layers, device = module.base_model.layers, next(module.parameters()).device
    for layer in layers:
        forward = without_plans(device)(layer.forward)  # also when it is computed again
        layer.forward = partial(checkpoint, forward, use_reentrant=False, preserve_rng_state=False)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # the class has its own


def _padded(sequences: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    rows = [torch.as_tensor(sequence, dtype=torch.int64) for sequence in sequences]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)
