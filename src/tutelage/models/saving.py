"""A trained student as a plain Hugging Face model directory, or its adapter alone, that other tools open."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from tutelage.errors import ModelError
from tutelage.models.finite import check_finite_weights
from tutelage.models.generation import drop_unsavable
from tutelage.models.language_model import LanguageModel
from tutelage.models.quantised import is_quantised
from tutelage.models.vocabulary import Vocabulary

__all__ = ["export_model", "follow_umask", "save_student"]


def save_student(
    student: LanguageModel,
    vocabulary: Vocabulary,
    folder: Path,
    *,
    merges: bool = False,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Write config, generation config, safetensors and tokenizer into `folder`; of an adapter, itself for the weights.

    The generation config lists every stop id of the shared vocabulary, the student's own first: the student was trained
    with all of them as one event, so it has to stop at each.

    Args:
      merges: write all weights also where an adapter learns, merged; the student stays as it is.
      weights: other ones to write than the student's; of no effect for an adapter.
    """
    original = student.module.generation_config
    if vocabulary.stop_ids:
        configuration = copy.deepcopy(original)
        ids = list(vocabulary.stop_ids)
        configuration.eos_token_id = ids if len(ids) > 1 else ids[0]
        student.module.generation_config = configuration
    try:
        if student.adapter is None:
            student.module.save_pretrained(folder, state_dict=None if weights is None else dict(weights))
        elif merges:
            student.module.save_pretrained(folder, state_dict=student.adapter.merged_weights())
        else:
            student.adapter.save(folder)
            student.module.generation_config.save_pretrained(folder)
    finally:
        student.module.generation_config = original
    if student.tokenizer is not None:
        student.tokenizer.save_pretrained(folder)
    follow_umask(folder)


def export_model(model: LanguageModel, dtype: torch.dtype, folder: Path) -> LanguageModel:
    """Write a model as a plain directory of its own, an adapter merged into its weights; the model is used up.

    Returns:
      what was written, in memory.
    Raises:
      ModelError: a quantised model, or weights that are not finite, be it merged or in this type.
    """
    if is_quantised(model.module):
        raise ModelError(
            f"{model.name} has quantised weights, which cannot be written as plain ones, nor an adapter merged into "
            "them. Give the model, or an adapter of the model, before it was quantised."
        )
    try:
        module = model.module if model.adapter is None else model.adapter.merged()
    except ValueError as problem:
        raise ModelError(f"{model.name} cannot be merged: {problem} Choose an earlier checkpoint.") from problem
    drop_unsavable(module)
    module.to(dtype)
    check_finite_weights(module, model.name)
    module.save_pretrained(folder)
    if model.tokenizer is not None:
        model.tokenizer.save_pretrained(folder)
    follow_umask(folder)
    return LanguageModel(module, model.tokenizer, model.stop_ids, model.name)


def follow_umask(folder: Path) -> None:
    """Give the files of a folder that was just made the permissions of the others; safetensors are written as 0600."""
    mode = folder.stat().st_mode & 0o666
    for file in folder.iterdir():
        if file.is_file():
            file.chmod(mode)
