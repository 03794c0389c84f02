"""A student's weights for a sampler that reads them again after every update."""

from __future__ import annotations

from pathlib import Path

from tutelage.models.language_model import LanguageModel
from tutelage.models.saving import finish_folder

__all__ = ["save_for_serving"]


def save_for_serving(student: LanguageModel, folder: Path) -> None:
    """Write config, safetensors and tokenizer into `folder`, with the head as a tensor of its own even if it is tied.

    vLLM 0.32 keeps an old head when it reads the weights of a tied model again on a CPU, where the head is repacked.
    Two tensors are two tensors everywhere. An adapter is merged into the weights that are written.
    """
    config = student.config
    head = student.module.get_output_embeddings().weight
    weights = student.trainable.merged_weights()
    weights = {name: w.clone() if w.data_ptr() == head.data_ptr() else w for name, w in weights.items()}
    is_tied, config.tie_word_embeddings = config.tie_word_embeddings, False
    try:
        student.module.save_pretrained(folder, state_dict=weights)
    finally:
        config.tie_word_embeddings = is_tied
    finish_folder(student, folder)
