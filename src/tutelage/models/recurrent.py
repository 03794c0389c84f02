"""How are the recurrent layers of a `transformers` module called?  With their states in hand, not in a cache of theirs.

Such a layer (`linear_attn`: the gated delta net of Qwen3-Next and Qwen3.5; Yang et al. 2024, arXiv 2412.06464) asks its
cache for two states, the window of a short convolution and a matrix for each head, and gives them back. So does linear
attention of our own, which keeps a count of tokens in the place of the window. `transformers`
keeps them in a cache that takes nothing back and cannot read rows of different lengths without padding. Here the
layer's own forward is called, with whatever kernels it has, and reads from and writes to what we pass.

Left out on purpose: recurrent layers with other names or states (Mamba, RWKV); models with those are refused.

Axis letters: B rows, R some of the rows, T tokens of each row, E width of the model.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.models.caches import HybridCache, States
from tutelage.models.linear_attention.attention import LinearAttention

__all__ = ["Mixers", "missing_kernels"]

# Packages whose kernels `transformers` calls in gated delta nets where it can import them, and what it imports.
KERNELS = {
    "flash-linear-attention": ("fla.ops.gated_delta_rule", "chunk_gated_delta_rule"),
    "causal-conv1d": ("causal_conv1d", "causal_conv1d_fn"),
}

# What the decoder's layers call the part that mixes tokens, where it is recurrent.
RECURRENT_NAME = "linear_attn"
# The plain form of a block fills it up to 64 tokens. A CPU reads up to so many tokens one after the other: 2, 4, 8
# tokens of 8 rows take 0.43, 0.83, 1.37 of a block's time, of 32 rows 0.25, 0.39, 0.62, of a single row 0.85, 1.39,
# 2.29; and then the states after each of them are known, and nothing is read again (benchmarks/hybrid.py).
MAX_SINGLE_TOKENS, SINGLE_TOKENS_PER_ROW = 8, 2
# States after each token of a round are kept up to so many bytes for a model; beyond, what stands is read once more.
KEPT_STATE_BYTES = 2**30


@dataclass(frozen=True)
class Mixers:
    """The recurrent parts of a decoder, by the number of their layer. False if there are none."""

    by_layer: dict[int, Any]

    @classmethod
    def of(cls, decoder: Any) -> Mixers:
        """Those of a decoder that shows its layers."""
        layers = enumerate(getattr(decoder, "layers", ()))
        return cls({i: getattr(layer, RECURRENT_NAME) for i, layer in layers if hasattr(layer, RECURRENT_NAME)})

    def __bool__(self) -> bool:
        return bool(self.by_layer)

    def state_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of the states of one row, all layers together, in a model that computes in this type."""
        return sum(_state_bytes(mixer, dtype) for mixer in self.by_layer.values())

    @property
    def may_use_kernels(self) -> bool:
        """Installed kernels are for them: they are layers of `transformers`."""
        return any(type(mixer).__module__.startswith("transformers.") for mixer in self.by_layer.values())

    @staticmethod
    def most_single_tokens(num_rows: int, device_type: str) -> int:
        """Up to how many new tokens of so many rows are read one after the other, and not as a block."""
        return min(MAX_SINGLE_TOKENS, SINGLE_TOKENS_PER_ROW * num_rows) if device_type == "cpu" else 1

    def tokens_kept(self, num_rows: int, dtype: torch.dtype) -> int:
        """After how many tokens of a round the states of so many rows are kept."""
        return KEPT_STATE_BYTES // (num_rows * self.state_bytes(dtype))

    @contextmanager
    def reading_on(self, cache: HybridCache) -> Iterator[None]:
        """Inside, the layers read new tokens of all rows of a cache, from its states on."""

        def read(forward: Any, layer: int, hidden_BTE: Tensor) -> Tensor:
            # Here and not in `roll_back`, since the weights of a sharded layer are there while it is called.
            states = cache.states_of(layer, lambda given_RTE, old: _last(_read(forward, given_RTE, old)[1]))
            output_BTE, after = _read(forward, hidden_BTE, states)
            cache.advance(layer, hidden_BTE, after, self.tokens_kept(cache.num_rows, hidden_BTE.dtype))
            return output_BTE

        with self._replaced(read):
            yield

    @contextmanager
    def reading_whole(self, lengths_R: Tensor) -> Iterator[dict[int, States]]:
        """Inside, the layers read whole sequences of these lengths; gives the states after each one's last token."""
        states: dict[int, States] = {}

        def read(forward: Any, layer: int, hidden_RTE: Tensor) -> Tensor:
            output_RTE, pieces, places = torch.zeros_like(hidden_RTE), [], []
            for length in lengths_R.unique().tolist():
                rows = (lengths_R == length).nonzero()[:, 0].to(hidden_RTE.device)
                output, piece = _read_block(forward, hidden_RTE[rows, :length], None)
                output_RTE[rows, :length] = output.to(output_RTE.dtype)
                pieces.append(piece)
                places.append(rows)
            home_R = torch.cat(places).argsort()
            states[layer] = tuple(torch.cat(each)[home_R] for each in zip(*pieces, strict=True))
            return output_RTE

        with self._replaced(read):
            yield states

    @contextmanager
    def _replaced(self, read: Any) -> Iterator[None]:
        before = {layer: mixer.__dict__.get("forward") for layer, mixer in self.by_layer.items()}
        for layer, mixer in self.by_layer.items():

            def forward(
                hidden_states: Tensor, *_: Any, own: Any = mixer.forward, number: int = layer, **__: Any
            ) -> Tensor:
                # The mask is left out, too: there is no padding.
                return read(own, number, hidden_states)

            mixer.forward = forward
        try:
            yield
        finally:
            for layer, mixer in self.by_layer.items():
                if before[layer] is None:
                    del mixer.forward  # the class has its own
                else:
                    mixer.forward = before[layer]


def missing_kernels() -> list[str]:
    """Packages with kernels for gated delta nets that cannot be imported here; PyTorch does their part."""
    return [package for package, (module, name) in KERNELS.items() if not _is_there(module, name)]


def _is_there(module: str, name: str) -> bool:
    try:
        return hasattr(importlib.import_module(module), name)
    except Exception:  # as `transformers` decides: a package that breaks on import is not used
        return False


def _read(forward: Any, hidden_BTE: Tensor, states: States | None) -> tuple[Tensor, list[States | None]]:
    """The output, and the states after each token where they are known."""
    num_rows, num_new = hidden_BTE.shape[:2]
    if num_new > Mixers.most_single_tokens(num_rows, hidden_BTE.device.type):
        output_BTE, last = _read_block(forward, hidden_BTE, states)
        return output_BTE, [*[None] * (num_new - 1), last]
    outputs, after = [], list[States | None]()
    for hidden_B1E in hidden_BTE.split(1, dim=1):
        output_B1E, states = _read_block(forward, hidden_B1E, states)
        outputs.append(output_B1E)
        after.append(states)
    return torch.cat(outputs, dim=1), after


def _last(after: list[States | None]) -> States:
    assert after[-1] is not None
    return after[-1]


def _read_block(forward: Any, hidden_BTE: Tensor, states: States | None) -> tuple[Tensor, States]:
    given = _GivenStates(states)
    output_BTE = forward(hidden_BTE, cache_params=given)
    assert given.convolution is not None and given.matrix is not None
    return output_BTE, (given.convolution, given.matrix)


class _GivenStates:
    """What one recurrent layer asks of its cache in one forward, in the names of `transformers`.

    Args:
      states: before the forward; None = nothing was read.
    """

    def __init__(self, states: States | None) -> None:
        self.convolution: Tensor | None = None
        self.matrix: Tensor | None = None
        if states is not None:
            window, self.matrix = states
            self.convolution = window.clone()  # a single token is written into it in place

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        return self.convolution

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        return self.matrix

    def is_recording_past(self, layer_idx: int) -> bool:
        return False

    def update_conv_state(self, conv_states: Tensor, layer_idx: int, conv_kernel_size: int, **_: Any) -> Tensor:
        """The columns to convolve, those before included; the last ones are kept."""
        columns = conv_states if self.convolution is None else torch.cat((self.convolution, conv_states), dim=-1)
        padded = F.pad(columns, (max(0, conv_kernel_size - columns.shape[-1]), 0))
        self.convolution = padded[..., -conv_kernel_size:].clone()  # a view would keep all columns in memory
        return columns

    def update_recurrent_state(self, recurrent_states: Tensor, layer_idx: int, **_: Any) -> Tensor:
        self.matrix = recurrent_states
        return recurrent_states


def _state_bytes(mixer: Any, dtype: torch.dtype) -> int:
    """Of one row and layer: a window in the model's type and a matrix in float32; a layer of ours knows it itself."""
    if isinstance(mixer, LinearAttention):
        return mixer.state_bytes(dtype)
    window = mixer.conv_dim * mixer.conv_kernel_size * dtype.itemsize
    return int(window + mixer.num_v_heads * mixer.head_k_dim * mixer.head_v_dim * torch.float32.itemsize)
