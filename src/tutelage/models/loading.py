"""From a directory or a hub id to a model we can trust: safetensors only, and no code from the hub, unless asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tutelage.errors import ConfigurationError, ModelError
from tutelage.hub import check_hub
from tutelage.models.context import ContextLength, context_length_in
from tutelage.models.finite import check_finite_weights
from tutelage.models.generation import read_generation_config
from tutelage.models.language_model import LanguageModel, stop_ids_of
from tutelage.models.quantised import placement_of, quantised
from tutelage.models.reading import ADVICE, reading
from tutelage.models.serving import check_servable
from tutelage.models.source import DTYPES, ModelSource
from tutelage.models.trainables import ALL_WEIGHTS, PeftLora, TrainableSettings
from tutelage.models.trainables.adapter_folder import WEIGHTS as ADAPTER_WEIGHTS
from tutelage.models.trainables.adapter_folder import Base, base_of, fingerprint
from tutelage.models.vocabulary import PROBE_TEXT
from tutelage.models.weight_check import check_report, load_meta_module, quietly
from tutelage.models.weight_files import weight_files

__all__ = ["check_distinct", "check_files", "context_length_of", "load_language_model", "load_module", "load_tokenizer"]


def check_distinct(student: ModelSource, teacher: ModelSource) -> None:
    """Refuse a teacher that is the student: its targets would equal the student and every loss would be zero."""
    if _identity(student.path) == _identity(teacher.path) and student.revision == teacher.revision:
        raise ConfigurationError(
            f"teacher and student are both {student.path!r}; a model cannot learn from itself here. "
            "Set `teacher` to a stronger model of the same family."
        )


def load_tokenizer(source: ModelSource | str) -> Any:
    """Load the tokenizer of a model directory or hub id; of an adapter without one, its base's.

    Raises:
      ModelError: nothing is there, or it is not a tokenizer.
    """
    source = ModelSource.of(source)
    path, revision, base = source.path, source.revision, base_of(source.path)
    if base is None:
        _check_directory(path, "config.json")
    elif not (Path(path) / "tokenizer_config.json").is_file():
        path, revision = base.path, base.revision
    with reading("tokenizer", path):
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=source.trust_remote_code)
    # Where there are no files, transformers makes up a tokenizer without tokens, and everything it reads is empty.
    names, folder = sorted(set(tokenizer.vocab_files_names.values())), Path(path)
    if names and folder.is_dir() and not any((folder / name).exists() for name in names):
        raise ModelError(f"{path!r} has no tokenizer (none of {', '.join(names)}). {ADVICE}.")
    with reading("tokenizer", path):  # some damage shows only when a text is cut
        tokenizer.decode(tokenizer(PROBE_TEXT, verbose=False)["input_ids"])
    return tokenizer


def check_files(source: ModelSource | str) -> None:
    """Refuse a model directory without configuration or weights, at no cost; a hub id is looked up when it is loaded.

    An adapter's folder is checked together with its base.

    Raises:
      ModelError: names what is missing.
    """
    source = ModelSource.of(source)
    path, base = source.path, base_of(source.path)
    if base is None:
        _check_directory(path, "config.json")
        if Path(path).is_dir():
            weight_files(path, allow_pickle=source.allow_pickle)
        return
    check_files(replace(source, path=base.path))
    if not (Path(path) / ADAPTER_WEIGHTS).is_file():
        raise ModelError(f"{path!r} has an adapter's configuration but no weights ({ADAPTER_WEIGHTS}). {ADVICE}.")


def context_length_of(source: ModelSource | str) -> ContextLength | None:
    """Most tokens of a text, see `models.context`; None if the configuration does not say."""
    source = ModelSource.of(source)
    path, revision, base = source.path, source.revision, base_of(source.path)
    if base is not None:
        path, revision = base.path, base.revision
    _check_directory(path, "config.json")
    with reading("model", path):
        config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=source.trust_remote_code)
        return context_length_in(config.get_text_config())


def load_language_model(
    source: ModelSource | str,
    tokenizer: Any,
    *,
    device: str | torch.device = "cpu",
    trainable: TrainableSettings = ALL_WEIGHTS,
    quantization: str | None = None,
    seed: int = 0,
) -> LanguageModel:
    """Load a causal language model from a directory or hub id, and make sure that our engine can serve it.

    Args:
      source: where it is; a bare path or hub id is loaded in float32.
      tokenizer: the model's tokenizer, from `load_tokenizer` (loaded first, because its checks cost nothing).
      trainable: what of the model learns when it is trained; ignored if the source is an adapter, which then learns.
      quantization: "4bit" on CUDA; None = none.
      seed: of weights that are put into the model to learn.
    Raises:
      ModelError: missing or unreadable files, an adapter of another base; names what was looked for.
      ConfigurationError: the model has nothing that could learn in this way, or cannot be quantised here.
      UnsupportedArchitectureError: see `check_servable`.
    """
    source = ModelSource.of(source)
    path, dtype = source.path, DTYPES[source.dtype]
    check_files(source)
    noted = base_of(path)
    base = Base(path, source.revision) if noted is None else noted
    source = replace(source, path=base.path, revision=base.revision)
    placement = placement_of(load_meta_module(source).config, device)
    if quantization is not None:
        placement = quantised(quantization, dtype, device)
    module = load_module(AutoModelForCausalLM, source, placement)
    if noted is not None or not trainable.kind.changes_backbone:
        # Numbers that were rounded twice, or quantised, cannot be compared with those of the files.
        is_comparable = dtype != torch.float16 and not placement
        base = Base(base.path, base.revision, fingerprint(module) if is_comparable else None)
    # Before the model moves to its device, so that fresh weights are the same on all of them.
    learning = trainable.put_on(module, base, seed) if noted is None else PeftLora.read(module, Path(path), base)
    # An adapter's folder has its own. A damaged file is refused here; transformers would ignore it.
    if Path(path).is_dir() and (generation_config := read_generation_config(path)) is not None:
        module.generation_config = generation_config
    if not placement:
        module.to(device)
    with reading("stop ids of the model", path):
        stop_ids = stop_ids_of(module, tokenizer)
    model = LanguageModel(module, tokenizer, stop_ids, name=path, trainable=learning)
    check_servable(model)
    return model


def load_module(kind: Any, source: ModelSource, placement: Mapping[str, Any]) -> Any:
    """The `transformers` model of a directory or hub id with its weights: all of them, finite, and without dropout.

    Args:
      kind: which of transformers' automatic classes makes it.
      placement: arguments for `from_pretrained` that say where, or as which codes, weights are made; mostly none.
    Raises:
      ModelError: unreadable files, or weights of another model.
    """
    with reading("model", source.path), quietly():
        module, report = kind.from_pretrained(
            source.path,
            revision=source.revision,
            trust_remote_code=source.trust_remote_code,
            dtype=DTYPES[source.dtype],
            use_safetensors=None if source.allow_pickle else True,
            attn_implementation=source.attention,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused by name below
            **placement,
        )
    check_report(report, source.path)
    check_finite_weights(module, source.path)
    # Rollouts and losses must see the same distribution, so dropout stays off throughout, also while training.
    return module.eval()


def _check_directory(path: str, file_name: str) -> None:
    folder = Path(path)
    if folder.is_dir() and not (folder / file_name).is_file():
        raise ModelError(f"{path!r} has no {file_name}, so it is not a model directory. {ADVICE}.")
    if not folder.exists() and (path.startswith((".", "/", "~")) or path.count("/") > 1):
        raise ModelError(f"model directory {path!r} does not exist. {ADVICE}.")
    if not folder.exists():
        check_hub(path, "model")


def _identity(path: str) -> str:
    folder = Path(path).expanduser()
    return str(folder.resolve()) if folder.exists() else path
