"""A trained student as a plain Hugging Face model directory that any tool of the ecosystem opens."""

from __future__ import annotations

import copy
from pathlib import Path

from tutelage.models.language_model import LanguageModel
from tutelage.models.vocabulary import Vocabulary

__all__ = ["save_student"]


def save_student(student: LanguageModel, vocabulary: Vocabulary, folder: Path) -> None:
    """Write config, generation config, safetensors and tokenizer into `folder`.

    The generation config lists every stop id of the shared vocabulary, the student's own first: the student was trained
    with all of them as one event, so it has to stop at each.
    """
    original = student.module.generation_config
    if vocabulary.stop_ids:
        configuration = copy.deepcopy(original)
        ids = list(vocabulary.stop_ids)
        configuration.eos_token_id = ids if len(ids) > 1 else ids[0]
        student.module.generation_config = configuration
    try:
        student.module.save_pretrained(folder)
    finally:
        student.module.generation_config = original
    if student.tokenizer is not None:
        student.tokenizer.save_pretrained(folder)
