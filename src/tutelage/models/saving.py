"""A trained student as a plain Hugging Face model directory, or its adapter alone, that other tools open."""

from __future__ import annotations

import copy
from pathlib import Path

import torch

from tutelage.errors import ModelError
from tutelage.models.language_model import LanguageModel
from tutelage.models.vocabulary import Vocabulary

__all__ = ["export_model", "save_student"]


def save_student(student: LanguageModel, vocabulary: Vocabulary, folder: Path, *, merges: bool = False) -> None:
    """Write config, generation config, safetensors and tokenizer into `folder`; of an adapter, itself for the weights.

    The generation config lists every stop id of the shared vocabulary, the student's own first: the student was trained
    with all of them as one event, so it has to stop at each.

    Args:
      merges: write all weights also where an adapter learns, merged; the student stays as it is.
    """
    original = student.module.generation_config
    if vocabulary.stop_ids:
        configuration = copy.deepcopy(original)
        ids = list(vocabulary.stop_ids)
        configuration.eos_token_id = ids if len(ids) > 1 else ids[0]
        student.module.generation_config = configuration
    try:
        if student.adapter is None:
            student.module.save_pretrained(folder)
        elif merges:
            student.module.save_pretrained(folder, state_dict=student.adapter.merged_weights())
        else:
            student.adapter.save(folder)
            student.module.generation_config.save_pretrained(folder)
    finally:
        student.module.generation_config = original
    if student.tokenizer is not None:
        student.tokenizer.save_pretrained(folder)


def export_model(model: LanguageModel, dtype: torch.dtype, folder: Path) -> None:
    """Write a model as a plain directory of its own, an adapter merged into its weights; the model is used up.

    Raises:
      ModelError: merged weights that are not finite.
    """
    try:
        module = model.module if model.adapter is None else model.adapter.merged()
    except ValueError as problem:
        raise ModelError(f"{model.name} cannot be merged: {problem} Choose an earlier checkpoint.") from problem
    module.to(dtype).save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
