"""A model without its weights: what configuration and tokenizer alone show, at next to no cost.

Its parameters have shapes and no numbers (PyTorch's device "meta"), so sizes, stop ids and vocabularies are those of
the real model, worked out by the same code, and nothing can be computed with it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tutelage.models.generation import read_generation_config
from tutelage.models.language_model import LanguageModel, stop_ids_of
from tutelage.models.loading import check_files
from tutelage.models.reading import reading
from tutelage.models.source import ModelSource
from tutelage.models.trainables import ALL_WEIGHTS, Base, PeftLora, TrainableSettings, base_of
from tutelage.models.weight_check import load_meta_module

__all__ = ["meta_model_of"]


def meta_model_of(
    source: ModelSource | str,
    tokenizer: Any,
    *,
    trainable: TrainableSettings = ALL_WEIGHTS,
    needs_weights: bool = True,
) -> LanguageModel:
    """The model that `load_language_model` would load, without weights; hub ids cost two small files.

    Args:
      needs_weights: refuse a directory that has none; off where the model runs somewhere else.
      (the others as in `load_language_model`)
    Raises:
      ModelError: nothing is there, or no causal language model can be made of its configuration.
      ConfigurationError: the model has nothing that could learn in this way.
    """
    source = ModelSource.of(source)
    path = source.path
    if needs_weights:
        check_files(source)
    noted = base_of(path)
    base = Base(path, source.revision) if noted is None else noted
    module = load_meta_module(replace(source, path=base.path, revision=base.revision), needs_weights=needs_weights)
    if (generation_config := read_generation_config(path, source.revision)) is not None:
        module.generation_config = generation_config
    with torch.device("meta"):
        placed = trainable.put_on(module, base, seed=0) if noted is None else PeftLora.like(module, Path(path), base)
    with reading("stop ids of the model", path):
        stop_ids = stop_ids_of(module, tokenizer)
    return LanguageModel(module, tokenizer, stop_ids, name=path, trainable=placed)
