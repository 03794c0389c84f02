"""Is the folder that was written the model in memory?  Asked once of every checkpoint and export, before it counts.

The folder is opened as anybody would open it, names, types, shapes and numbers are compared, and then a twin, made from
the written configuration, computes a few tokens beside the model. The twin has the memory's own weights, which were
found equal to the file's: so it costs no second copy of them, and what is left to differ is the configuration.

The same is tried before the first step with everything but the weights, so that no checkpoint fails for a reason that
was known at the start. A student that is sharded (FSDP2) is saved from its whole copy, which is what is compared here.
A base in 4 bits is not put into a second model; of an adapter on one, files and numbers are compared.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from tutelage.errors import ModelError
from tutelage.models.adapter_files import WEIGHTS
from tutelage.models.adapters import Adapter, place_adapter
from tutelage.models.fingerprint import tokenizer_fingerprint
from tutelage.models.generation import drop_unsavable, read_generation_config
from tutelage.models.language_model import LanguageModel, ids_of
from tutelage.models.loading import load_tokenizer
from tutelage.models.quantised import is_quantised
from tutelage.models.reading import brief, reading
from tutelage.models.saving import save_student
from tutelage.models.serving import tolerance_of
from tutelage.models.vocabulary import Vocabulary
from tutelage.models.weight_check import check_report, quietly

__all__ = ["check_savable", "check_saved"]

NUM_TOKENS = 4  # of the forward


def check_savable(student: LanguageModel, vocabulary: Vocabulary) -> None:
    """Write what a checkpoint will hold but its weights, and read it back; the place it is written to is forgotten.

    Generation parameters that cannot be saved are dropped from the student, with a warning.

    Raises:
      ModelError: it cannot be written, or is not read as it was.
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
            save_student(student, vocabulary, folder, weights={})
        except Exception as problem:  # the libraries that write raise almost every kind
            raise ModelError(
                f"what a checkpoint of {student.name} would hold cannot be written (tried in {place}): "
                f"{brief(problem)}. Correct the model's configuration, or make room for temporary files."
            ) from problem
        check_saved(student, vocabulary, folder, holds_weights=False)
        if student.tokenizer is not None:
            _check_tokenizer(student, folder)


def check_saved(
    student: LanguageModel, vocabulary: Vocabulary | None, folder: Path, *, holds_weights: bool = True
) -> None:
    """Read a written folder back and compare it with the student in memory.

    Args:
      vocabulary: whose stop ids must be there; None = as the model's own.
      holds_weights: False = the folder has everything else.
    Raises:
      ModelError: names what differs.
    """
    if student.adapter is None:
        twin = _plain_twin(student, folder, holds_weights)
    else:
        _check_adapter_file(student.adapter, folder)
        twin = None if is_quantised(student.module) else _adapted_twin(student, student.adapter, folder)
    if vocabulary is not None and vocabulary.stop_ids:
        written = ids_of(getattr(read_generation_config(str(folder)), "eos_token_id", None))
        if written != list(vocabulary.stop_ids):
            raise _differs(student, f"stop ids {written}, not {list(vocabulary.stop_ids)}")
    if twin is not None:
        _check_forward(student, twin)


def _plain_twin(student: LanguageModel, folder: Path, holds_weights: bool) -> Any:
    module = student.module
    held = module.state_dict()
    how: dict[str, Any] = {
        "dtype": module.dtype,
        "attn_implementation": module.config._attn_implementation,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,
    }
    with reading("model", str(folder)), quietly():
        if holds_weights:
            twin, report = type(module).from_pretrained(folder, use_safetensors=True, **how)
        else:
            # One number under every shape, so that nothing is allocated.
            shapes = {name: torch.zeros(1, dtype=weight.dtype).expand(weight.shape) for name, weight in held.items()}
            config = type(module.config).from_pretrained(folder)
            twin, report = type(module).from_pretrained(None, config=config, state_dict=shapes, **how)
    check_report(report, str(folder))
    _check_equal(student, twin.state_dict(), held, compares_numbers=holds_weights)
    twin.load_state_dict(held, assign=True)
    return twin.to(student.device).eval()


def _adapted_twin(student: LanguageModel, adapter: Adapter, folder: Path) -> Any:
    """The adapter as its folder describes it, on the base in memory."""
    module = student.module
    with torch.device("meta"):
        twin = type(module)(module.config)
        place_adapter(twin, folder, adapter.base)
    held = module.state_dict()
    shapes = twin.state_dict()
    for name in shapes.keys() | held.keys():
        if name not in shapes or name not in held or shapes[name].shape != held[name].shape:
            raise _differs(student, f"{name} on one side only, or in another shape")
    twin.load_state_dict(held, assign=True)
    buffers = dict(module.named_buffers())
    for name, buffer in list(twin.named_buffers()):
        if buffer.is_meta:  # the base's, which is not written
            owner, _, last = name.rpartition(".")
            twin.get_submodule(owner)._buffers[last] = buffers[name]
    return twin.eval()


def _check_adapter_file(adapter: Adapter, folder: Path) -> None:
    with reading("adapter", str(folder)):
        written = load_file(folder / WEIGHTS)
    held = adapter.state()
    if written.keys() != held.keys() or any(
        written[name].dtype != held[name].dtype or not torch.equal(written[name], held[name].cpu()) for name in held
    ):
        raise ModelError(
            f"{folder / WEIGHTS} does not hold the adapter in memory. Look for a fault of the disk, and keep the run."
        )


def _check_equal(
    student: LanguageModel, written: Mapping[str, Tensor], held: Mapping[str, Tensor], *, compares_numbers: bool
) -> None:
    for name in sorted(written.keys() | held.keys()):
        if name not in written or name not in held:
            raise _differs(student, f"{name} on one side only")
        ours, theirs = held[name], written[name]
        if (ours.dtype, ours.shape) != (theirs.dtype, theirs.shape):
            raise _differs(student, f"{name} as {theirs.dtype} {list(theirs.shape)}")
        if compares_numbers and not torch.equal(theirs, ours.to(theirs.device)):
            raise _differs(student, f"other numbers in {name}")


@torch.no_grad()
def _check_forward(student: LanguageModel, twin: Any) -> None:
    tokens_1T = torch.tensor([student.known_ids[:NUM_TOKENS]], device=student.device)
    with reading("written configuration of the model", student.name):
        ours, theirs = (
            each(input_ids=tokens_1T, use_cache=False).logits.float().log_softmax(-1) for each in (student.module, twin)
        )
    error = float((ours - theirs).abs().max())
    if not error <= tolerance_of(student.module):
        raise _differs(
            student, f"a configuration under which the same weights compute something else ({error:.2g} nats)"
        )


def _check_tokenizer(student: LanguageModel, folder: Path) -> None:
    own = student.tokenizer
    comes_with_code = type(own).__module__.startswith("transformers_modules")
    written = load_tokenizer(str(folder), trust_remote_code=comes_with_code)
    if tokenizer_fingerprint(written) != tokenizer_fingerprint(own):
        raise _differs(student, "a tokenizer that cuts text differently")
    if written.chat_template != own.chat_template:
        raise _differs(student, "another chat template")


def _differs(student: LanguageModel, what: str) -> ModelError:
    return ModelError(
        f"{student.name} would not be the same model once saved: read back, the folder has {what}. Save the original "
        "with your version of transformers (`save_pretrained`) and train from that copy, or use another version."
    )
