"""A layer that mixes tokens by linear attention: its state is as large after a thousand tokens as after one.

    o_t = Σ_{j ≤ t} κ(s_tj) v_j / (Σ_{j ≤ t} κ(s_tj) + ε),   s_tj = q_t · k_j / sqrt(D)

Since κ(s_tj) = φ(q_t) · φ(k_j), the sums over j are one matrix, to which every token adds φ(k) vᵀ. A one is appended to
each value, so that the denominator is one more column of it. Three forms give the same numbers: token by token from the
matrix (`step`), whole (all pairs of tokens), and in blocks, pairs inside a block and the matrix for what is before it.

The denominator is held at 0 at least: it is a sum of weights that are not negative, but through the matrix rounding
may leave less. ε = 1e-5, as in flash-linear-attention and not 1e-12 as in the paper's code, where both forms disagree
for a token that gives no weight to any other. Scores, sums and the division are in float32 at least.

Axis letters: B rows, T tokens, H heads of keys and values, G query heads of each of them, D entries of a query or key,
F features, V entries of a value with its one, E width of the model.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import rotate_half

from tutelage.models.linear_attention.kernels import KERNELS, Kernel

__all__ = ["BLOCK_TOKENS", "EPSILON", "LinearAttention", "LinearState", "read", "step"]

EPSILON = 1e-5
# Below some 280 tokens all pairs are less work than features, at 16 entries of a key and 64 of a value.
BLOCK_TOKENS = 256

LinearState = Tensor
"""Sums of φ(k) vᵀ of all tokens read, [B, H, F, V]; its last column is the sum of φ(k)."""


def read(
    kernel: Kernel,
    queries_BHGTD: Tensor,
    keys_BHTD: Tensor,
    values_BHTV: Tensor,
    state: LinearState | None = None,
    block_tokens: int = BLOCK_TOKENS,
) -> Tensor:
    """Outputs for whole sequences, [B, H, G, T, V - 1], from a state on; None = nothing was read.

    Args:
      values_BHTV: with a one in the last place; all zeros where a token only pads.
      block_tokens: of pairs; any number gives the same up to rounding, T or more is the parallel form.
    """
    num_groups, outputs = queries_BHGTD.shape[2], []
    spans = range(0, keys_BHTD.shape[2], block_tokens)
    for start in spans:
        span = slice(start, start + block_tokens)
        keys_BHtD, values_BHtV = keys_BHTD[:, :, span], values_BHTV[:, :, span]
        # Query heads that share a key head are more queries of that head.
        queries_BHqD = queries_BHGTD[:, :, :, span].flatten(2, 3)
        scores_BHqt = queries_BHqD @ keys_BHtD.transpose(-1, -2) / keys_BHtD.shape[-1] ** 0.5
        weights = kernel.weights(scores_BHqt).unflatten(2, (num_groups, -1)).tril().flatten(2, 3)
        sums_BHqV = weights @ values_BHtV
        if state is not None:
            sums_BHqV = sums_BHqV + kernel.features(queries_BHqD) @ state
        outputs.append(_divided(sums_BHqV).unflatten(2, (num_groups, -1)))
        if start != spans[-1]:
            state = added(kernel, keys_BHtD, values_BHtV, state)
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=3)


def step(
    kernel: Kernel, queries_BHGD: Tensor, keys_BHD: Tensor, values_BHV: Tensor, state: LinearState | None
) -> tuple[Tensor, LinearState]:
    """Outputs for one more token, [B, H, G, V - 1], and the state after it."""
    # A single token costs the number of operations, so features are made of queries and keys at once.
    features_BHgF = kernel.features(torch.cat((queries_BHGD, keys_BHD[:, :, None]), dim=2))
    key_BHF1, value_BH1V = features_BHgF[:, :, -1, :, None], values_BHV[:, :, None]
    state = key_BHF1 * value_BH1V if state is None else torch.addcmul(state, key_BHF1, value_BH1V)
    return _divided(features_BHgF[:, :, :-1] @ state), state


def added(kernel: Kernel, keys_BHTD: Tensor, values_BHTV: Tensor, state: LinearState | None) -> LinearState:
    """The state after some more tokens."""
    new = kernel.features(keys_BHTD).transpose(-1, -2) @ values_BHTV
    return new if state is None else state + new


def _divided(sums_V: Tensor) -> Tensor:
    return sums_V[..., :-1] / (sums_V[..., -1:].clamp_min(0) + EPSILON)


class LinearAttention(nn.Module):
    """Linear attention in the place of a softmax one, whose projections it takes over.

    Queries and keys are projected, normalised and rotated as softmax attention does. Then one more projection makes
    vectors of `linear_feature_size` entries of each head's, since a kernel has about D² / 2 features; the LayerNorms of
    ReBased follow, one over all query heads and one over all key heads, as in the paper's code.

    Positions are counted in the state, so that a row that is rolled back, moved or padded on the left keeps its own.
    `conv_...` and `..._head...` name the state's sizes as the recurrent layers of `transformers` name theirs.

    Args:
      attention: of the same family; it is taken apart.
      rotary: the decoder's.
      config: of the model, with `linear_kernel` and `linear_feature_size`.
      layer_idx: the layer's number.
    """

    conv_dim = conv_kernel_size = 1  # the number of tokens read, where others keep the window of a convolution

    def __init__(self, attention: Any, rotary: Any, config: Any, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.kernel = KERNELS[config.linear_kernel]
        self.head_dim, self.feature_size = int(attention.head_dim), int(config.linear_feature_size)
        self.num_q_heads = attention.q_proj.out_features // self.head_dim
        self.num_k_heads = self.num_v_heads = attention.k_proj.out_features // self.head_dim
        self.head_k_dim, self.head_v_dim = self.kernel.num_features(self.feature_size), self.head_dim + 1
        self.q_proj, self.k_proj = attention.q_proj, attention.k_proj
        self.v_proj, self.o_proj = attention.v_proj, attention.o_proj
        self.q_norm, self.k_norm = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
        self.rotary_emb = type(rotary)(config=config)
        self.q_feature_proj, self.k_feature_proj = (
            nn.Linear(heads * self.head_dim, heads * self.feature_size, bias=False)
            for heads in (self.num_q_heads, self.num_k_heads)
        )
        self.q_feature_norm, self.k_feature_norm = (
            nn.LayerNorm(heads * self.feature_size, eps=EPSILON) if self.kernel.is_normalised else None
            for heads in (self.num_q_heads, self.num_k_heads)
        )

    def forward(
        self, hidden_states: Tensor, cache_params: Any = None, attention_mask: Tensor | None = None, **_: Any
    ) -> Tensor:
        """Outputs [B, T, E] for new tokens, from the cache's states on.

        Args:
          cache_params: a cache of `transformers`, or what `recurrent.Mixers` hands over; None = nothing was read.
          attention_mask: [B, up to T or more], 0 where a token only pads; None = none does. Others are ignored.
        """
        seen, state, num_new = None, None, hidden_states.shape[1]
        if cache_params is not None:
            seen = cache_params.get_conv_state(self.layer_idx)
            state = cache_params.get_recurrent_state(self.layer_idx)
        is_real_BT = None
        if attention_mask is not None and attention_mask.ndim == 2:
            is_real_BT = attention_mask[:, -num_new:].to(torch.int64)
        positions_BT = self._positions(hidden_states, is_real_BT, None if seen is None else seen[:, 0])
        queries, keys, values = self._projected(hidden_states, positions_BT)
        with torch.autocast(hidden_states.device.type, enabled=False):
            dtype = torch.promote_types(hidden_states.dtype, torch.float32)
            queries_BTD, keys_BTD, values_BTV = (each.to(dtype) for each in (queries, keys, values))
            q = (
                _normalised(self.q_feature_norm, queries_BTD)
                .unflatten(-1, (self.num_k_heads, -1, self.feature_size))
                .permute(0, 2, 3, 1, 4)
            )
            k = _normalised(self.k_feature_norm, keys_BTD).unflatten(-1, (-1, self.feature_size)).transpose(1, 2)
            v = F.pad(values_BTV.unflatten(-1, (-1, self.head_dim)), (0, 1), value=1.0).transpose(1, 2)
            if is_real_BT is not None:
                v = v * is_real_BT[:, None, :, None].to(dtype)
            if num_new == 1:
                output, state = step(self.kernel, q[..., 0, :], k[..., 0, :], v[..., 0, :], state)
                output_BTE = output.flatten(1)[:, None]
            else:
                output = read(self.kernel, q, k, v, state)
                output_BTE = output.permute(0, 3, 1, 2, 4).flatten(2)
                state = added(self.kernel, k, v, state) if cache_params is not None else None
        if cache_params is not None:
            count_B11 = positions_BT.new_full((len(hidden_states), 1, 1), num_new)
            count_B11 = count_B11 if is_real_BT is None else is_real_BT.sum(-1)[:, None, None]
            count_B11 = count_B11 if seen is None else count_B11 + seen
            cache_params.update_conv_state(count_B11, self.layer_idx, conv_kernel_size=1)
            cache_params.update_recurrent_state(state, self.layer_idx)
        projected: Tensor = self.o_proj(output_BTE.to(hidden_states.dtype))
        return projected

    def state_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of one row's state, of a model in this type: the number of tokens read, and the sums."""
        sums = self.num_v_heads * self.head_k_dim * self.head_v_dim
        return torch.int64.itemsize + sums * torch.promote_types(dtype, torch.float32).itemsize

    def _positions(self, hidden_BTE: Tensor, is_real_BT: Tensor | None, seen_B1: Tensor | None) -> Tensor:
        """Which token of its text each is, counted from 0; those that pad do not count. [B or 1, T]."""
        if is_real_BT is None:
            positions_BT = torch.arange(hidden_BTE.shape[1], device=hidden_BTE.device)[None]
        else:
            positions_BT = (is_real_BT.cumsum(-1) - 1).clamp_min(0)
        return positions_BT if seen_B1 is None else positions_BT + seen_B1

    def _projected(self, hidden_BTE: Tensor, positions_BT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What features are made of, of queries and keys, [B, T, heads · D], and values [B, T, heads · head_dim]."""
        queries = self.q_proj(hidden_BTE).unflatten(-1, (-1, self.head_dim))
        keys = self.k_proj(hidden_BTE).unflatten(-1, (-1, self.head_dim))
        if self.q_norm is not None and self.k_norm is not None:
            queries, keys = self.q_norm(queries), self.k_norm(keys)
        cos, sin = self.rotary_emb(hidden_BTE, positions_BT)
        both = torch.cat((queries, keys), dim=2)
        both = both * cos[:, :, None] + rotate_half(both) * sin[:, :, None]
        queries, keys = both.split((self.num_q_heads, self.num_k_heads), dim=2)
        return self.q_feature_proj(queries.flatten(2)), self.k_feature_proj(keys.flatten(2)), self.v_proj(hidden_BTE)


def _normalised(norm: nn.LayerNorm | None, vectors: Tensor) -> Tensor:
    if norm is None:
        return vectors
    return F.layer_norm(vectors, norm.normalized_shape, norm.weight.to(vectors), norm.bias.to(vectors), norm.eps)
