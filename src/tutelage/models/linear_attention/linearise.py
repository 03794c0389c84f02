"""From a softmax model to the same one with linear attention in some of its layers.

Every weight that both have is copied: queries, keys, values and outputs of the replaced layers among them. New are the
projections that shorten queries and keys, and the norms of ReBased. The former begin as rotations of each head that are
cut off, the same for keys and their queries, so that products of queries and keys are kept on average; what is lost has
to be learned.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.errors import ConfigurationError, UnsupportedArchitectureError
from tutelage.models.linear_attention.architecture import (
    DEFAULT_FEATURE_SIZE,
    DEFAULT_KERNEL,
    LINEAR_LAYER_TYPE,
    SOFTMAX_LAYER_TYPE,
    linear_families,
)
from tutelage.models.linear_attention.attention import LinearAttention
from tutelage.models.linear_attention.kernels import KERNELS
from tutelage.models.llama_forward import LlamaForward
from tutelage.models.quantised import is_quantised, method_of

__all__ = ["Linearised", "check_linearisable", "layers_from", "linearise"]

MAX_FEATURE_SIZE = 128


@dataclass(frozen=True)
class Linearised:
    """A model with linear layers, and where its weights come from.

    Fields:
      module: of transformers, in the type of the original.
      layers: which were replaced, counted from 0.
      num_copied, num_new: numbers of its weights.
      new: names of the weights that are new, without their layer.
    """

    module: Any
    layers: tuple[int, ...]
    num_copied: int
    num_new: int
    new: tuple[str, ...]


def layers_from(text: str, num_layers: int) -> tuple[int, ...]:
    """The layers that "0,2-4", "all" or "every-other" (1, 3, 5, ...) names, counted from 0.

    Raises:
      ConfigurationError: it is none of these, or there is no such layer.
    """
    if text in ("all", "every-other"):
        return tuple(range(num_layers) if text == "all" else range(1, num_layers, 2))
    found: set[int] = set()
    for part in text.split(","):
        numbers = re.fullmatch(r"\s*(\d{1,6})(?:-(\d{1,6}))?\s*", part)
        if numbers is None or int(numbers[2] or numbers[1]) < int(numbers[1]):
            raise ConfigurationError(
                f"--layers is {text!r}; expected numbers and ranges such as 0,2-4, or all, or every-other."
            )
        found.update(range(int(numbers[1]), int(numbers[2] or numbers[1]) + 1))
    if max(found) >= num_layers:
        raise ConfigurationError(
            f"--layers names layer {max(found)}, but the model has {num_layers}, counted from 0 to {num_layers - 1}."
        )
    return tuple(sorted(found))


@torch.no_grad()
def linearise(
    module: Any,
    layers: Sequence[int],
    kernel: str = DEFAULT_KERNEL,
    feature_size: int = DEFAULT_FEATURE_SIZE,
    seed: int = 0,
) -> Linearised:
    """A copy of a model with linear attention in these layers; with none of them it computes what the original does.

    Args:
      module: of transformers: a Llama, Mistral without window, Qwen2 or Qwen3.
      layers: counted from 0.
      kernel: a key of `KERNELS`.
      feature_size: entries of a query or key that the kernel sees; a state has about half their square of rows.
      seed: of the new weights.
    Raises:
      UnsupportedArchitectureError, ConfigurationError: as of `check_linearisable`.
    """
    check_linearisable(module, kernel, feature_size)
    config_class, model_class = linear_families()[module.config.model_type]
    settings = {
        key: value for key, value in module.config.to_dict().items() if key not in ("architectures", "model_type")
    }
    kinds = [LINEAR_LAYER_TYPE if place in layers else SOFTMAX_LAYER_TYPE for place in range(len(module.model.layers))]
    config = config_class(
        **settings | {"layer_types": kinds, "linear_kernel": kernel, "linear_feature_size": feature_size}
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        linear = model_class(config).to(module.dtype).to(module.device)
    named = {_renamed(name, layers): weight for name, weight in module.state_dict().items()}
    new, leftover = linear.load_state_dict(named, strict=False)
    assert not leftover and all("_feature_" in name for name in new), (new, leftover)
    for place in layers:
        _begin(linear.model.layers[place].linear_attn, generator)
    linear.generation_config = module.generation_config
    linear.train(module.training)
    own = linear.state_dict()
    num_new = sum(own[name].numel() for name in new)
    return Linearised(
        linear,
        tuple(layers),
        sum(parameter.numel() for parameter in linear.parameters()) - num_new,
        num_new,
        tuple(dict.fromkeys(name.split("linear_attn.")[1] for name in new)),
    )


def check_linearisable(module: Any, kernel: str = DEFAULT_KERNEL, feature_size: int = DEFAULT_FEATURE_SIZE) -> None:
    """Refuse what `linearise` cannot do, also of a model without its weights.

    Raises:
      UnsupportedArchitectureError: another architecture, or quantised weights.
      ConfigurationError: no such kernel or size.
    """
    architecture, config = type(module).__name__, module.config
    if kernel not in KERNELS:
        raise ConfigurationError(f"--kernel is {kernel!r}; expected one of {', '.join(KERNELS)}.")
    if not 1 <= feature_size <= MAX_FEATURE_SIZE:
        raise ConfigurationError(f"--feature-size is {feature_size}; expected 1 to {MAX_FEATURE_SIZE}. Use 16.")
    if is_quantised(module) or method_of(config) is not None:
        raise UnsupportedArchitectureError(
            f"the {architecture} has quantised weights, which cannot learn. Give the model before it was quantised."
        )
    known = config.model_type in linear_families() and LlamaForward.recognise(module.base_model, config) is not None
    if not known:
        raise UnsupportedArchitectureError(
            f"a {architecture} cannot be linearised; expected a Llama, Mistral without window, Qwen2 or Qwen3 "
            "with full attention in every layer and plain rotary positions."
        )


def _renamed(name: str, layers: Sequence[int]) -> str:
    found = re.fullmatch(r"(.*\blayers\.(\d+)\.)self_attn(\..*)", name)
    return f"{found[1]}linear_attn{found[3]}" if found is not None and int(found[2]) in layers else name


def _begin(attention: LinearAttention, generator: torch.Generator) -> None:
    """Set the new projections of a layer: for each head of keys, a rotation of which the first rows are kept."""
    full, kept = attention.head_dim, attention.feature_size
    size = max(full, kept)
    drawn = torch.randn(attention.num_k_heads, size, size, generator=generator, dtype=torch.float64)
    # E[q' · k'] = (kept / full) q · k; the kernel divides by sqrt(kept) where softmax divides by sqrt(full).
    cut_KDd = torch.linalg.qr(drawn)[0][:, :kept, :full] * max(1.0, full / kept) ** 0.25
    _set_blocks(attention.k_feature_proj, list(cut_KDd))
    num_groups = attention.num_q_heads // attention.num_k_heads
    _set_blocks(attention.q_feature_proj, [cut for cut in cut_KDd for _ in range(num_groups)])


def _set_blocks(projection: nn.Linear, blocks: list[Tensor]) -> None:
    projection.weight.copy_(torch.block_diag(*blocks))
