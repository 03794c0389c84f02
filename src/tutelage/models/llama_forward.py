"""A forward of our own for the Llama family as `transformers` lays it out, without what a rollout does not need.

On small batches most of the time of the module's own forward goes into many small operations around the matrix
products: normalisation in six steps, rotary tables made anew, masks, and layers of Python. Here the same numbers come
from fewer operations. Weights stay where they are: the linear submodules are called, so biases, adapters and updated
weights are seen at once, and nothing is copied.

Axis letters: B rows, T new positions, S keys, H heads of keys and values, D head size, N tokens of many sequences laid
end to end, n those whose hidden states are wanted, R rows of a cache, E width of the model.

Left out on purpose: every architecture that `recognise` does not know by name and structure; those are served by their
own forward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tutelage.kernels import layer_kernels
from tutelage.models.attention import attend
from tutelage.models.caches import ContiguousCache, KVCache
from tutelage.models.packing import Layout, Packing, pack

__all__ = ["LlamaForward"]

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
# Rotary embeddings whose angles depend on the position alone; others ("dynamic", "longrope") change with the length.
ROPE_TYPES = ("default", "linear", "llama3", "yarn")
ATTENTION_KINDS = ("eager", "sdpa")
LINEAR_NAMES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
MLP_NAMES = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "mlp.act_fn")
SILU = ("SiLU", "SiLUActivation")
NORM_NAMES = ("input_layernorm", "post_attention_layernorm")


@dataclass(eq=False)
class LlamaForward:
    """The decoder of one model (`LlamaModel`, `Qwen3Model`, ...), computed our way; see `Forward`. Made by `recognise`.

    Its hidden states equal those of the module up to rounding, gradients included.
    """

    decoder: Any
    num_heads: int
    head_size: int
    scale: float
    _tables: tuple[Tensor, Tensor] | None = field(default=None, repr=False)
    # Looking for them takes a millisecond, so it is done once for a cache, and only where a step asks.
    _weights: list[Tensor] | None = field(default=None, repr=False)
    _compiled_parts: tuple[Any, Any] | None = field(default=None, repr=False)

    @classmethod
    def recognise(cls, decoder: Any, config: Any) -> LlamaForward | None:
        """Our forward for this decoder, or None if it is not one that we know to compute."""
        rotary: Any = getattr(decoder, "rotary_emb", None)
        known = (
            getattr(config, "model_type", None) in MODEL_TYPES
            and _full_attention_only(config)
            and getattr(rotary, "rope_type", None) in ROPE_TYPES
            and isinstance(getattr(decoder, "embed_tokens", None), nn.Embedding)
            and _is_rms_norm(getattr(decoder, "norm", None))
            and all(_is_known_layer(layer) for layer in getattr(decoder, "layers", [None]))
            and not _hooked(decoder, rotary, decoder.norm)
        )
        if not known:
            return None
        attention = decoder.layers[0].self_attn
        if rotary.inv_freq.shape[0] * 2 != attention.head_dim:
            return None
        num_heads = int(config.num_key_value_heads)
        return cls(decoder, num_heads, attention.head_dim, attention.scaling)

    @property
    def is_usable(self) -> bool:
        """False while the module is set to something that our forward does not do.

        That is gradient checkpointing, dropout in training mode, or an attention kernel other than SDPA and eager.
        """
        config, first = self.decoder.config, self.decoder.layers[0]
        return (
            config._attn_implementation in ATTENTION_KINDS
            and not getattr(first, "gradient_checkpointing", False)
            and not (self.decoder.training and getattr(config, "attention_dropout", 0.0))
        )

    @property
    def cache_kind(self) -> type[KVCache]:
        """See `Forward`."""
        return ContiguousCache

    def allocate(self, cache: KVCache, dtype: torch.dtype | None) -> None:
        """See `Forward`."""
        cache.allocate(self.num_heads, self.head_size, self.decoder.norm.weight.new_empty(0, dtype=dtype))
        self._weights = None

    def prepare(self, num_positions: int) -> None:
        """See `Forward`."""
        self.rotations(num_positions)

    def tensors(self) -> list[Tensor]:
        """See `Forward`."""
        if self._weights is None:
            self._weights = list(self.decoder.parameters())
        return [*self._weights, *self._known_rotations()]

    # --- decoding: rows of new tokens that look at a cache ---

    def decode(self, tokens_BT: Tensor, positions_BT: Tensor, cache: KVCache, num_visible: int) -> Tensor:
        """See `Forward`. Tensors in, tensors out, so that it can be compiled or captured as a whole."""
        view = cache.begin(positions_BT, num_visible)
        hidden = self.decoder.embed_tokens(tokens_BT)
        cos, sin = (table[positions_BT][:, :, None] for table in self._known_rotations())
        for i, layer in enumerate(self.decoder.layers):
            queries, keys, values = self._projected(layer, _normalised(layer.input_layernorm, hidden))
            rotated = _rotated(torch.cat((queries, keys), dim=2), cos, sin)
            queries, keys = rotated[:, :, : -self.num_heads], rotated[:, :, -self.num_heads :]
            attended = view.attend(i, queries, keys, values, self.scale)
            hidden = self._attention_output_and_mlp(layer, hidden, attended)
        return _normalised(self.decoder.norm, hidden)

    # --- reading whole sequences: tokens laid end to end ---

    def read(
        self,
        sequences: Sequence[Sequence[int]],
        starts: Sequence[int],
        device: torch.device,
        *,
        checkpoints: bool = False,
        compiles: bool = False,
    ) -> Tensor:
        """See `Forward`."""
        packing = pack(sequences, starts, device)
        parts = self._compiled() if compiles else (self._attention_inputs, self._attention_output_and_mlp)
        *layers, last = self.decoder.layers
        hidden, rotation = self._embedded(packing)

        def layer_forward(layer: Any, hidden: Tensor) -> Tensor:
            return self._layer(layer, hidden, rotation, packing, parts)

        def last_layer_forward(layer: Any, hidden: Tensor) -> Tensor:
            return self._last_layer(layer, hidden, rotation, packing, parts[1])

        for layer in layers:
            hidden = _checkpointed(layer_forward, layer, hidden) if checkpoints else layer_forward(layer, hidden)
        hidden = _checkpointed(last_layer_forward, last, hidden) if checkpoints else last_layer_forward(last, hidden)
        return _normalised(self.decoder.norm, hidden)

    def _layer(
        self, layer: Any, hidden: Tensor, rotation: tuple[Tensor, Tensor], packing: Packing, parts: tuple[Any, Any]
    ) -> Tensor:
        """One layer for all packed tokens."""
        attention_inputs, attention_output_and_mlp = parts
        queries, keys, values = attention_inputs(layer, hidden, *rotation)
        attended = self._attend(queries, keys, values, packing.layout)
        output: Tensor = attention_output_and_mlp(layer, hidden, attended)
        return output

    def _last_layer(
        self,
        layer: Any,
        hidden: Tensor,
        rotation: tuple[Tensor, Tensor],
        packing: Packing,
        attention_output_and_mlp: Callable[[Any, Tensor, Tensor], Tensor],
    ) -> Tensor:
        """The last layer for the tails. Of the heads only keys and values are computed, since nothing else is used."""
        normalised = _normalised(layer.input_layernorm, hidden)
        keys, values = self._keys_and_values(layer, normalised)
        tails = packing.tails_n
        queries = self._queries(layer, normalised.index_select(0, tails))
        keys = _rotated(keys, *rotation)
        queries = _rotated(queries, *(table.index_select(0, tails) for table in rotation))
        attended = self._attend(queries, keys, values, packing.tail_layout)
        return attention_output_and_mlp(layer, hidden.index_select(0, tails), attended)

    def _compiled(self) -> tuple[Any, Any]:
        """What comes before and after attention, compiled once for all layers and any number of tokens."""
        if self._compiled_parts is None:
            compiled = partial(torch.compile, dynamic=True, fullgraph=True)
            self._compiled_parts = compiled(self._attention_inputs), compiled(self._attention_output_and_mlp)
        return self._compiled_parts

    def fill(self, sequences: Sequence[Sequence[int]], rows_R: Tensor, cache: KVCache) -> None:
        """See `Forward`; nothing else is computed."""
        packing = pack(sequences, [len(sequence) for sequence in sequences], rows_R.device)
        hidden, rotation = self._embedded(packing)
        rows_N = rows_R[packing.rows_N]
        cache.reserve(packing.extent)
        for i, layer in enumerate(self.decoder.layers):
            normalised = _normalised(layer.input_layernorm, hidden)
            keys, values = self._keys_and_values(layer, normalised)
            keys = _rotated(keys, *rotation)
            cache.write(i, rows_N, packing.positions_N, keys, values)
            if i + 1 < cache.num_layers:
                queries = _rotated(self._queries(layer, normalised), *rotation)
                attended = self._attend(queries, keys, values, packing.layout)
                hidden = self._attention_output_and_mlp(layer, hidden, attended)

    def _attend(self, queries: Tensor, keys: Tensor, values: Tensor, layout: Layout) -> Tensor:
        """[n, heads · D]: packed queries [n, heads, D] look at packed keys and values [N, H, D], block by block."""
        blocks = layout.blocks
        query_places = [block.num_rows * block.num_queries for block in blocks]
        key_places = [block.num_rows * block.num_keys for block in blocks]
        pieces = []
        for block, q, k, v in zip(
            blocks,
            layout.queries(queries).split(query_places),
            layout.keys(keys).split(key_places),
            layout.keys(values).split(key_places),
            strict=True,
        ):
            attended = attend(
                q.unflatten(0, (block.num_rows, block.num_queries)).transpose(1, 2),
                k.unflatten(0, (block.num_rows, block.num_keys)).transpose(1, 2),
                v.unflatten(0, (block.num_rows, block.num_keys)).transpose(1, 2),
                block.allowed_b1TS,
                self.scale,
            )
            pieces.append(attended.transpose(1, 2).flatten(2).flatten(0, 1))
        return layout.outputs(torch.cat(pieces))

    # --- the parts of a layer ---

    def _embedded(self, packing: Packing) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        cos, sin = self.rotations(packing.extent)
        positions_N = packing.positions_N
        return self.decoder.embed_tokens(packing.tokens_N), (cos[positions_N][:, None], sin[positions_N][:, None])

    def _attention_inputs(self, layer: Any, hidden: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries and keys, and values of one layer."""
        queries, keys, values = self._projected(layer, _normalised(layer.input_layernorm, hidden))
        return _rotated(queries, cos, sin), _rotated(keys, cos, sin), values

    def _projected(self, layer: Any, normalised: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of one layer, [..., heads, D], not rotated yet."""
        return self._queries(layer, normalised), *self._keys_and_values(layer, normalised)

    def _queries(self, layer: Any, normalised: Tensor) -> Tensor:
        attention = layer.self_attn
        queries = attention.q_proj(normalised)
        queries = queries.view(*queries.shape[:-1], -1, self.head_size)
        norm = getattr(attention, "q_norm", None)
        return queries if norm is None else _normalised(norm, queries)

    def _keys_and_values(self, layer: Any, normalised: Tensor) -> tuple[Tensor, Tensor]:
        attention, shape = layer.self_attn, (*normalised.shape[:-1], self.num_heads, self.head_size)
        keys, values = attention.k_proj(normalised).view(shape), attention.v_proj(normalised).view(shape)
        norm = getattr(attention, "k_norm", None)
        return keys if norm is None else _normalised(norm, keys), values

    def _attention_output_and_mlp(self, layer: Any, hidden: Tensor, attended: Tensor) -> Tensor:
        """The layer's output: attention's projection and the feed-forward part, each added to the residual stream."""
        hidden = hidden + layer.self_attn.o_proj(attended)
        normalised, mlp = _normalised(layer.post_attention_layernorm, hidden), layer.mlp
        return hidden + mlp.down_proj(_gated(mlp.act_fn, mlp.gate_proj(normalised), mlp.up_proj(normalised)))

    def rotations(self, extent: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of positions 0 .. extent-1 (or more), [P, D] each, as the module itself makes them."""
        like = self.decoder.embed_tokens.weight
        tables = self._tables
        stale = tables is None or tables[0].dtype != like.dtype or tables[0].device != like.device
        if stale or len(tables[0]) < extent:  # type: ignore[index]
            positions_1P = torch.arange(max(256, 2 * extent), device=like.device)[None]
            cos, sin = (table[0] for table in self.decoder.rotary_emb(like, positions_1P))
            sin[:, : self.head_size // 2].neg_()
            self._tables = cos, sin
        return self._known_rotations()

    def _known_rotations(self) -> tuple[Tensor, Tensor]:
        assert self._tables is not None
        return self._tables


def _checkpointed(layer_forward: Callable[[Any, Tensor], Tensor], layer: Any, hidden: Tensor) -> Tensor:
    output: Tensor = checkpoint(layer_forward, layer, hidden, use_reentrant=False, preserve_rng_state=False)
    return output


def _rotated(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (x_i, x_{i + D/2}) of [..., heads, D] by their position's angles (RoFormer, arXiv 2104.09864).

    cos, sin: [..., 1, D]; the first half of `sin` carries its minus sign.
    """
    rotated: Tensor = _Rotation.apply(states, cos, sin) if states.requires_grad else _turned(states, cos, sin)
    return rotated


def _gated(activation: Any, gate: Tensor, up: Tensor) -> Tensor:
    """activation(gate) · up."""
    kernels = layer_kernels(gate) if type(activation).__name__ in SILU else None
    if kernels is not None:
        gated: Tensor = kernels.gated(gate, up)
        return gated
    gate = activation(gate)
    # These are the widest tensors of all; without a gradient, one less of them is worth having.
    return gate * up if torch.is_grad_enabled() else gate.mul_(up)


def _turned(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    if (kernels := layer_kernels(states)) is not None:
        turned: Tensor = kernels.turned(states, cos, sin)
        return turned
    half = states.shape[-1] // 2
    swapped = torch.cat((states[..., half:], states[..., :half]), dim=-1)
    return torch.addcmul(swapped.mul_(sin), states, cos)


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(states, cos, sin)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        cos, sin = ctx.saved_tensors
        return _turned(gradients[0], cos, -sin), None, None  # the inverse of a rotation is its transpose


def _normalised(norm: Any, states: Tensor) -> Tensor:
    """x · w / sqrt(mean(x²) + epsilon), in float32 whatever the type, cast before the weight (arXiv 1910.07467)."""
    if states.dtype == torch.float64:
        return norm(states)  # the module rounds to float32 here; so must we, to give its numbers
    if (kernels := layer_kernels(states)) is not None:
        return kernels.normalised(states, norm.weight, norm.variance_epsilon)
    shape, epsilon = norm.weight.shape, norm.variance_epsilon
    if states.dtype != torch.float32:
        return norm.weight * F.rms_norm(states.float(), shape, None, epsilon).to(states.dtype)
    if states.is_cuda:
        return F.rms_norm(states, shape, norm.weight, epsilon)
    if torch.is_grad_enabled():
        normalised: Tensor = _RMSNorm.apply(states, norm.weight, epsilon)
        return normalised
    return (states * _inverse_root_mean_square(states, epsilon)).mul_(norm.weight)


def _inverse_root_mean_square(states: Tensor, epsilon: float) -> Tensor:
    norms = torch.linalg.vector_norm(states, dim=-1, keepdim=True)
    return torch.addcmul(norms.new_full((), epsilon), norms, norms, value=1 / states.shape[-1]).rsqrt_()


class _RMSNorm(torch.autograd.Function):
    """RMSNorm with its gradient written out: PyTorch's own, a chain of small steps on CPUs, takes 2 to 4 times as long.

    With r = 1 / sqrt(mean(x²) + epsilon), y = x r and output w y, for an incoming gradient g:
      dw = Σ_rows g y,   dx = r (g w - y mean(g w y)).
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        scale = _inverse_root_mean_square(states, epsilon)
        ctx.save_for_backward(states, weight, scale)
        return (states * scale).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = gradients
        states, weight, scale = ctx.saved_tensors
        unit = states * scale
        product = gradient * unit
        pull = torch.matmul(product, weight).div_(-states.shape[-1])[..., None]
        into_states = torch.mul(gradient, weight).addcmul_(unit, pull).mul_(scale)
        return into_states, product.flatten(0, -2).sum(0), None


def _full_attention_only(config: Any) -> bool:
    kinds = set(getattr(config, "layer_types", None) or ())
    return kinds == {"full_attention"} if kinds else getattr(config, "sliding_window", None) is None


def _is_rms_norm(module: Any) -> bool:
    return type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon")


def _is_known_layer(layer: Any) -> bool:
    try:
        linears = [layer.get_submodule(name) for name in (*LINEAR_NAMES, *MLP_NAMES)]
        norms = [layer.get_submodule(name) for name in NORM_NAMES]
    except AttributeError:
        return False
    attention = layer.self_attn
    norms += [norm for norm in (getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)) if norm]
    # A hook on a module that we do not call would not run: sharding, offloading, probes.
    return all(map(_is_rms_norm, norms)) and bool(linears) and not _hooked(layer, attention, layer.mlp, *norms)


def _hooked(*modules: Any) -> bool:
    return any(module._forward_hooks or module._forward_pre_hooks for module in modules)
