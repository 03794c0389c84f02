"""Do the weight files hold this model, all of it and nothing else?

Checked on the files' headers before any weight is read, and again on what `transformers` reports after loading. Both
are the same check: for the first, the library's own loader is given tensors that have shapes only, so that it handles
renamed, tied and merged weights in the same way.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from tutelage.errors import ModelError
from tutelage.models.quantised import check_packages, method_of
from tutelage.models.reading import read_json, reading
from tutelage.models.source import DTYPES, ModelSource
from tutelage.models.weight_files import stored_tensors, weight_files

__all__ = ["check_report", "is_plain_float", "load_meta_module", "quietly"]

# A count in a configuration that is looped over, and so must be sensible before a model is made of it.
COUNTS = re.compile(r"(num_hidden_layers|num_layers|n_layers?|num_.*experts.*|n_.*experts.*|num_labels|num_nextn.*)")
MAX_COUNT = 10_000
# Prefixes that wrappers leave in the names of weights, and which wrapper does.
PREFIXES = {
    "_orig_mod.": "torch.compile",
    "module.": "DataParallel or DistributedDataParallel",
    "_fsdp_wrapped_module.": "FSDP",
    "base_model.model.": "peft",
}
# Parts of a multimodal model that its language model does not have.
OTHER_MODALITIES = (
    "vision",
    "visual",
    "image",
    "video",
    "audio",
    "speech",
    "multi_modal",
    "mm_",
    "embed_vision",
    "embed_audio",
)
FLOATS = {torch.float64, torch.float32, torch.bfloat16, torch.float16}


def is_plain_float(tensor: Tensor) -> bool:
    """Whether it holds numbers of a type that models are computed in, and not a code for some."""
    return tensor.dtype in FLOATS


def load_meta_module(source: ModelSource, *, needs_weights: bool = True, kind: Any = AutoModelForCausalLM) -> Any:
    """The `transformers` model of a directory or hub id with shapes and no numbers; a directory's weights fit it.

    `kind`: which of transformers' automatic classes makes it.

    Raises:
      ModelError: no causal language model can be made of the configuration, a package is missing for it, or the weight
        files lack some of its weights, hold others too, or hold them in other shapes or as something else than numbers.
    """
    path, trusts_code = source.path, source.trust_remote_code
    is_folder = Path(path).is_dir()
    if is_folder:
        _check_counts(read_json(Path(path) / "config.json"), path)
    with reading("model", path):
        config = AutoConfig.from_pretrained(path, revision=source.revision, trust_remote_code=trusts_code)
        check_packages(config)
        with torch.device("meta"):
            module: Any = kind.from_config(
                config,
                dtype=DTYPES[source.dtype],
                trust_remote_code=trusts_code,
                attn_implementation=source.attention,
            )
    # What the files of a quantised model hold is known to its quantiser only; the report after loading is.
    if is_folder and needs_weights and method_of(config) is None:
        stored = stored_tensors(weight_files(path, allow_pickle=source.allow_pickle))
        _check_types(module, stored, path)
        with reading("model", path), quietly():
            _, report = type(module).from_pretrained(
                None,
                config=module.config,
                state_dict=dict(stored),
                device_map={"": "meta"},
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
        check_report(report, path)
    return module


def check_report(report: Mapping[str, Any], path: str) -> None:
    """Refuse a model whose weights did not all come from its files, or whose files hold weights that it does not have.

    Args:
      report: what `from_pretrained(..., output_loading_info=True)` returns.
    Raises:
      ModelError: names some of them.
    """
    missing = sorted(report["missing_keys"])
    leftover = sorted(name for name in report["unexpected_keys"] if not _is_of_other_modality(name))
    mismatched = sorted(report["mismatched_keys"])
    for prefix, origin in PREFIXES.items():
        count = sum(name.startswith(prefix) for name in leftover)
        if count and missing:
            raise ModelError(
                f"the names of {count} weights in {path!r} begin with {prefix!r}, as {origin} leaves them, so the "
                f"model would get none of them. Save the model without its wrapper, or strip {prefix!r} from the names."
            )
    found = [
        *([f"lack {_some(missing)}, which its configuration asks for"] if missing else []),
        *([f"hold {_some(leftover)}, for which its configuration has no place"] if leftover else []),
        *(f"hold {name} of shape {list(stored)}, not {list(asked)}" for name, stored, asked in mismatched[:1]),
        *([f"hold {len(mismatched) - 1} more of another shape"] if len(mismatched) > 1 else []),
        *map(str, report.get("error_msgs", ())),
    ]
    if found:
        raise ModelError(
            f"the weights of {path!r} are not those of the model in its config.json: they {'; they '.join(found)}. "
            "Restore the folder from its source, or save the whole model again with `save_pretrained`."
        )


@contextmanager
def quietly() -> Iterator[None]:
    """Keep progress bars, and the table of weights that `check_report` refuses, off the terminal."""
    transformers_logging.disable_progress_bar()  # it would tear through our own display
    logger = logging.getLogger("transformers.modeling_utils")

    def is_kept(record: logging.LogRecord) -> bool:
        return record.levelno > logging.WARNING

    logger.addFilter(is_kept)
    try:
        yield
    finally:
        logger.removeFilter(is_kept)


def _check_counts(config: Any, path: str) -> None:
    for key, value in config.items() if isinstance(config, dict) else ():
        is_count = isinstance(value, int) and not isinstance(value, bool) and COUNTS.fullmatch(str(key))
        if is_count and not 0 <= value <= MAX_COUNT:
            raise ModelError(
                f"the config.json of {path!r} has {key} = {value}; expected 0 to {MAX_COUNT}. Restore the file from "
                "the model's source."
            )
        _check_counts(value, path)


def _check_types(module: Any, stored: Mapping[str, Tensor], path: str) -> None:
    needed = {name for name, tensor in module.state_dict().items() if tensor.is_floating_point()}
    odd = sorted(
        name
        for name, tensor in stored.items()
        if not is_plain_float(tensor) and (name.endswith(".weight") or name in needed)
    )
    if odd:
        kind = str(stored[odd[0]].dtype).removeprefix("torch.")
        raise ModelError(
            f"{path!r} holds {_some(odd)} as {kind}, and its config.json has no quantization_config that says what the "
            "codes mean. Give a model with weights in float32, bfloat16 or float16, or restore its config.json."
        )


def _is_of_other_modality(name: str) -> bool:
    return any(part.startswith(OTHER_MODALITIES) for part in name.split("."))


def _some(names: list[str]) -> str:
    """The first names, and how many there are."""
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
