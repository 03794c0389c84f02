"""A model without its weights: what configuration and tokenizer alone tell, at next to no cost.

Its parameters have shapes and no numbers (PyTorch's device "meta"), so sizes, stop ids and vocabularies are those of
the real model, worked out by the same code, and nothing can be computed with it.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from tutelage.errors import ModelError, in_short
from tutelage.models.adapters import AdapterSettings, Base, add_adapter, base_of, place_adapter
from tutelage.models.language_model import LanguageModel, stop_ids_of
from tutelage.models.loading import DTYPES, check_files

__all__ = ["outline_of"]


def outline_of(
    path: str,
    tokenizer: Any,
    *,
    dtype: str = "float32",
    revision: str | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    adapter: AdapterSettings | None = None,
    needs_weights: bool = True,
) -> LanguageModel:
    """The model that `load_language_model` would load, without weights; hub ids cost two small files.

    Args:
      needs_weights: refuse a directory that has none; off where the model runs somewhere else.
      (the others as in `load_language_model`)
    Raises:
      ModelError: nothing is there, or no causal language model can be made of its configuration.
      ConfigurationError: an adapter for modules that are not there.
    """
    if needs_weights:
        check_files(path, allow_pickle=allow_pickle)
    noted = base_of(path)
    base = Base(path, revision) if noted is None else noted
    try:
        config = AutoConfig.from_pretrained(base.path, revision=base.revision, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            module: Any = AutoModelForCausalLM.from_config(
                config, dtype=DTYPES[dtype], trust_remote_code=trust_remote_code
            )
    except (OSError, ValueError, KeyError, RuntimeError) as problem:
        raise ModelError(
            f"no model can be made of the configuration in {base.path!r}: {in_short(problem)}. Give a model "
            "directory or hub id of a causal language model."
        ) from problem
    with suppress(OSError):  # without one, it stops where its configuration says
        module.generation_config = GenerationConfig.from_pretrained(path, revision=revision or "main")
    fitted = None
    with torch.device("meta"):
        if noted is not None:
            fitted = place_adapter(module, Path(path), base)
        elif adapter is not None:
            fitted = add_adapter(module, adapter, base, seed=0)
    return LanguageModel(module, tokenizer, stop_ids_of(module, tokenizer), name=path, adapter=fitted)
