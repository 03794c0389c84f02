"""Tiny reward models: random weights, one output, a tokenizer of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from tests.support.tiny_models import SHAPE
from tests.support.tiny_run import make_tokenizer


def save_reward_model(
    folder: Path, *, num_labels: int = 1, pad: int | None = 256, tokenizer: Any = None, **shape: Any
) -> Path:
    """A Qwen3 for sequence classification, with the tokenizer of `tiny_run`."""
    settings = {**SHAPE, "vocab_size": 264, "max_position_embeddings": 8192, **shape}
    config = transformers.Qwen3Config(**{**settings, "pad_token_id": pad, "eos_token_id": 258}, num_labels=num_labels)
    torch.manual_seed(5)
    transformers.Qwen3ForSequenceClassification(config).save_pretrained(folder)
    (make_tokenizer() if tokenizer is None else tokenizer).save_pretrained(folder)
    return folder
