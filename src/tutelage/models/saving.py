"""A trained student as a plain Hugging Face model directory, or its adapter alone, that other tools open."""

from __future__ import annotations

import copy
from pathlib import Path

import torch

from tutelage.errors import ModelError
from tutelage.models.finite import check_finite_weights
from tutelage.models.generation import drop_unsavable
from tutelage.models.language_model import LanguageModel
from tutelage.models.quantised import is_quantised
from tutelage.models.vocabulary import Vocabulary

__all__ = ["export_model", "finish_folder", "save_student"]


def save_student(
    student: LanguageModel,
    vocabulary: Vocabulary,
    folder: Path,
    *,
    with_weights: bool = True,
) -> None:
    """Write what learned (a whole model directory, or an adapter alone), generation config and tokenizer into `folder`.

    The generation config lists every stop id of the shared vocabulary, the student's own first: the student was trained
    with all of them as one event, so it has to stop at each.

    Args:
      with_weights: see `Trainable.save`.
    """
    original = student.module.generation_config
    if vocabulary.stop_ids:
        configuration = copy.deepcopy(original)
        ids = list(vocabulary.stop_ids)
        configuration.eos_token_id = ids if len(ids) > 1 else ids[0]
        student.module.generation_config = configuration
    try:
        student.trainable.save(folder, with_weights=with_weights)
    finally:
        student.module.generation_config = original
    finish_folder(student, folder)


def export_model(model: LanguageModel, dtype: torch.dtype, folder: Path) -> LanguageModel:
    """Write a model as a plain directory of its own, what learned merged into its weights; the model is used up.

    Returns:
      what was written, in memory.
    Raises:
      ModelError: a quantised model, or weights that are not finite after merging or in this type.
    """
    if is_quantised(model.module):
        raise ModelError(
            f"{model.name} has quantised weights, which cannot be written as plain ones, nor an adapter merged into "
            "them. Give the model, or an adapter of the model, before it was quantised."
        )
    try:
        module = model.trainable.merged()
    except ValueError as problem:
        raise ModelError(f"{model.name} cannot be merged: {problem} Choose an earlier checkpoint.") from problem
    drop_unsavable(module)
    module.to(dtype)
    check_finite_weights(module, model.name)
    module.save_pretrained(folder)
    finish_folder(model, folder)
    return LanguageModel(module, model.tokenizer, model.stop_ids, model.name)


def finish_folder(model: LanguageModel, folder: Path) -> None:
    """Write the tokenizer beside the weights, and give all files the same permissions; safetensors come as 0600."""
    if model.tokenizer is not None:
        model.tokenizer.save_pretrained(folder)
    mode = folder.stat().st_mode & 0o666
    for file in folder.iterdir():
        if file.is_file():
            file.chmod(mode)
