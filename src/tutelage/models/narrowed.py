"""A model's linear layers with weights in the type of its products, for decoding under autocast.

Weights that learn are in float32. Decoding reads every weight once per token, so it wants them in bfloat16: half the
bytes, no conversion per product, and addresses that stay from step to step, which a captured step needs. Autocast then
finds every product in its type already, and gives the numbers that it gives on the weights themselves.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.models.llama_forward import LlamaForward

__all__ = ["NarrowedModel", "narrowed_bytes"]


class NarrowedModel:
    """The decoder and the head of a model, with linear layers of their own; all else is the model's.

    The copies hold what the weights were at the last `refresh`.

    Fields:
      forward: of the decoder.
      head: from hidden states to logits.
    """

    def __init__(self, decoder: Any, config: Any, head: nn.Module, dtype: torch.dtype) -> None:
        self._copies: list[tuple[Tensor, Tensor]] = []
        forward = LlamaForward.recognise(self._narrowed(decoder, dtype), config)
        assert forward is not None, "a copy of a decoder that we know has another structure"
        self.forward, self.head = forward, self._narrowed(head, dtype)

    def _narrowed(self, module: nn.Module, dtype: torch.dtype) -> Any:
        """The module again, around the same tensors but for those of its linear layers."""
        # What is in the memo is not copied.
        shared = [*module.parameters(), *module.buffers(), getattr(module, "config", None)]
        twin = copy.deepcopy(module, {id(part): part for part in shared})
        for owner, name, weight in _wide_weights(twin, dtype):
            narrow = nn.Parameter(torch.empty_like(weight, dtype=dtype), requires_grad=False)
            setattr(owner, name, narrow)
            self._copies.append((weight, narrow))
        return twin

    @torch.no_grad()
    def refresh(self) -> None:
        """Take the weights as they are now; the copies stay where they are."""
        for weight, narrow in self._copies:
            narrow.copy_(weight)


def narrowed_bytes(module: Any, dtype: torch.dtype) -> int:
    """Bytes of the copies of a `transformers` model, its head among them."""
    return sum(weight.numel() * dtype.itemsize for _, _, weight in _wide_weights(module, dtype))


def _wide_weights(module: nn.Module, dtype: torch.dtype) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    """Weights and biases of linear layers that autocast would convert: the layer, the name and the weight."""
    for layer in module.modules():
        if type(layer) is nn.Linear:
            for name, weight in layer.named_parameters(recurse=False):
                if weight.is_floating_point() and weight.dtype != dtype:
                    yield layer, name, weight
