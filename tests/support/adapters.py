"""Tiny students that are adapters."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tutelage.models import (
    AdapterSettings,
    LanguageModel,
    ModelSource,
    load_language_model,
    load_tokenizer,
)
from tutelage.models.trainables.adapter_folder import Base, fingerprint

SEQUENCES = [[1, 2, 3, 4, 5, 6, 7], [9], [3, 3, 1], [1, 2, 3, 4, 8]]
each_method = pytest.mark.parametrize("method", ["lora", "rslora", "dora"])


def adapted(module: Any, method: Any = "lora", seed: int = 0, **settings: Any) -> LanguageModel:
    settings = {"rank": 4, "alpha": 8, **settings}
    base = Base("base", sha256=fingerprint(module))
    model = LanguageModel(module, trainable=AdapterSettings(method, **settings).put_on(module, base, seed))
    model.enable_grad()
    return model


def shake(model: LanguageModel, seed: int = 0, size: float = 0.05) -> None:
    """What learns, as it may be after some training."""
    generator = torch.Generator().manual_seed(seed)
    for weight in model.trainable_state().values():
        weight.add_(size * torch.randn(weight.shape, generator=generator, dtype=weight.dtype))


def logprobs(model: LanguageModel) -> torch.Tensor:
    with torch.no_grad():
        return model.logits(model.hidden_packed(SEQUENCES)).log_softmax(-1)


def train_a_little(model: LanguageModel, steps: int = 3) -> None:
    optimizer = torch.optim.AdamW([p for p in model.module.parameters() if p.requires_grad], 1e-2)
    for _ in range(steps):
        model.logits(model.hidden_packed(SEQUENCES)).log_softmax(-1)[:, 3].mean().neg().backward()
        optimizer.step()
        optimizer.zero_grad()


def loaded(path: str, *, dtype: str = "float32", **settings: Any) -> LanguageModel:
    return load_language_model(ModelSource(path, dtype), load_tokenizer(path), **settings)
