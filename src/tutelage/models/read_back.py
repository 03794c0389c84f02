"""Is the folder that was written the model in memory?  Every checkpoint and export is checked before it counts.

The folder is opened as a user would open it, and names, types, shapes and numbers are compared. Then a twin, made from
the written configuration, computes a few tokens beside the model. The twin uses the weights in memory, which were found
equal to the file's, so it costs no second copy of them, and only the configuration can make a difference.

The same is tried before the first step with everything but the weights, so that no checkpoint fails for a reason that
was known at the start. A student that is sharded (FSDP2) is saved from its whole copy, which is what is compared here.
No second model is made of a base in 4 bits; for an adapter on one, files and numbers are compared.
"""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tutelage.errors import ModelError
from tutelage.models.fingerprint import tokenizer_fingerprint
from tutelage.models.generation import drop_unsavable, read_generation_config
from tutelage.models.language_model import LanguageModel, ids_of
from tutelage.models.loading import load_tokenizer
from tutelage.models.reading import brief, reading
from tutelage.models.saving import export_model, save_student
from tutelage.models.serving import tolerance_of
from tutelage.models.source import ModelSource
from tutelage.models.trainables.base import not_as_saved
from tutelage.models.vocabulary import Vocabulary

__all__ = ["check_savable", "check_saved", "export_checked"]

NUM_TOKENS = 4  # of the forward


def check_savable(student: LanguageModel, vocabulary: Vocabulary) -> None:
    """Write all that a checkpoint will hold except the weights into a temporary folder, and read it back.

    Generation parameters that cannot be saved are dropped from the student, with a warning.

    Raises:
      ModelError: it cannot be written, or what is read back differs.
    """
    if dropped := drop_unsavable(student.module):
        warnings.warn(
            f"{student.name}: transformers does not save {', '.join(dropped)} as the model's configuration has them "
            "(such as sampling parameters without do_sample), so checkpoints leave them out. Nothing here uses them.",
            stacklevel=2,
        )
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        try:
            save_student(student, vocabulary, folder, with_weights=False)
        except Exception as problem:  # the libraries that write raise almost every kind
            raise ModelError(
                f"what a checkpoint of {student.name} would hold cannot be written (tried in {place}): "
                f"{brief(problem)}. Correct the model's configuration, or make room for temporary files."
            ) from problem
        check_saved(student, vocabulary, folder, with_weights=False)
        if student.tokenizer is not None:
            _check_tokenizer(student, folder)


def export_checked(
    model: LanguageModel, dtype: torch.dtype, folder: Path, texts: Mapping[str, str] | None = None
) -> None:
    """Write a model as a plain directory, read it back, and only then give the folder its name; see `export_model`.

    Args:
      folder: a new one.
      texts: more files for it: name -> content.
    Raises:
      ModelError: what was written is not the model; nothing is left.
    """
    beside = folder.with_name(f".writing-{folder.name}")
    try:
        check_saved(export_model(model, dtype, beside), None, beside)
        for name, content in (texts or {}).items():
            (beside / name).write_text(content, encoding="utf-8")
        beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def check_saved(
    student: LanguageModel, vocabulary: Vocabulary | None, folder: Path, *, with_weights: bool = True
) -> None:
    """Read a written folder back and compare it with the student in memory.

    Args:
      vocabulary: whose stop ids must be there; None = as the model's own.
      with_weights: False = the folder has everything else.
    Raises:
      ModelError: names what differs.
    """
    twin = student.trainable.read_back(folder, student.name, with_weights=with_weights)
    if vocabulary is not None and vocabulary.stop_ids:
        written = ids_of(getattr(read_generation_config(str(folder)), "eos_token_id", None))
        if written != list(vocabulary.stop_ids):
            raise not_as_saved(student.name, f"stop ids {written}, not {list(vocabulary.stop_ids)}")
    if twin is not None:
        _check_forward(student, twin)


@torch.no_grad()
def _check_forward(student: LanguageModel, twin: Any) -> None:
    tokens_1T = torch.tensor([student.known_ids[:NUM_TOKENS]], device=student.device)
    with reading("written configuration of the model", student.name):
        ours, theirs = (
            each(input_ids=tokens_1T, use_cache=False).logits.float().log_softmax(-1) for each in (student.module, twin)
        )
    error = float((ours - theirs).abs().max())
    if not error <= tolerance_of(student.module):
        raise not_as_saved(
            student.name, f"a configuration under which the same weights compute something else ({error:.2g} nats)"
        )


def _check_tokenizer(student: LanguageModel, folder: Path) -> None:
    own = student.tokenizer
    comes_with_code = type(own).__module__.startswith("transformers_modules")
    written = load_tokenizer(ModelSource(str(folder), trust_remote_code=comes_with_code))
    if tokenizer_fingerprint(written) != tokenizer_fingerprint(own):
        raise not_as_saved(student.name, "a tokenizer that cuts text differently")
    if written.chat_template != own.chat_template:
        raise not_as_saved(student.name, "another chat template")
