"""Are these numbers all finite?  Many tensors are checked at once, with few waits for the device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from tutelage.errors import ModelError
from tutelage.models.weight_check import is_plain_float

__all__ = ["check_finite_weights", "is_all_finite", "tensors_in"]


@torch.no_grad()
def is_all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no number is NaN or infinite; codes of quantised weights are not checked.

    Of a sharded tensor (FSDP2) the local shard is checked, so every process must call this.
    """
    alike: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}  # one launch each
    for tensor in tensors:
        own = tensor.to_local() if hasattr(tensor, "to_local") else tensor
        if is_plain_float(own) and own.numel():
            alike.setdefault((own.device, own.dtype), []).append(own)
    # NaN and infinity pass through the 2-norm, which is the fastest check. It may overflow before its numbers do.
    return all(
        bool(torch.stack(torch._foreach_norm(each)).isfinite().all())
        or all(bool(tensor.isfinite().all()) for tensor in each)
        for each in alike.values()
    )


def tensors_in(content: Any) -> Iterator[Tensor]:
    """Every tensor in nested mappings and lists."""
    if isinstance(content, Tensor):
        yield content
    elif isinstance(content, Mapping):
        for value in content.values():
            yield from tensors_in(value)
    elif isinstance(content, list | tuple):
        for value in content:
            yield from tensors_in(value)


def check_finite_weights(module: Any, name: str) -> None:
    """Refuse a model with a weight that is NaN or infinite, even if few tokens use it.

    Raises:
      ModelError: names the weight.
    """
    weights = dict(module.named_parameters())
    if is_all_finite(weights.values()):
        return
    bad = next(key for key, weight in weights.items() if not is_all_finite([weight]))
    raise ModelError(
        f"{name} has weights that are NaN or infinite, such as {bad}, so they are damaged or overflow in "
        f"{str(weights[bad].dtype).removeprefix('torch.')}. Restore the model's files, or set another dtype."
    )
