"""From a directory or a hub id to a model we can trust: safetensors only, and no code from the hub, unless asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils import logging as transformers_logging

from tutelage.errors import ConfigurationError, ModelError, in_short
from tutelage.hub import check_hub
from tutelage.models.adapters import AdapterSettings, Base, add_adapter, base_of, fingerprint, read_adapter
from tutelage.models.context import ContextLength, context_length_in
from tutelage.models.language_model import LanguageModel, stop_ids_of
from tutelage.models.quantised import quantised
from tutelage.models.serving import check_servable

__all__ = ["check_distinct", "check_files", "context_length_of", "load_language_model", "load_tokenizer"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def check_distinct(
    student_path: str, teacher_path: str, student_revision: str | None, teacher_revision: str | None
) -> None:
    """Refuse a teacher that is the student: its targets would equal the student and every loss would be zero."""
    same = _identity(student_path) == _identity(teacher_path) and student_revision == teacher_revision
    if same:
        raise ConfigurationError(
            f"teacher and student are both {student_path!r}; a model cannot learn from itself here. "
            "Set `teacher` to a stronger model of the same family."
        )


def load_tokenizer(path: str, *, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """Load the tokenizer of a model directory or hub id; of an adapter without one, its base's.

    Raises:
      ModelError: nothing is there, or it is not a tokenizer.
    """
    base = base_of(path)
    if base is None:
        _check_directory(path, "config.json")
    elif not (Path(path) / "tokenizer_config.json").is_file():
        path, revision = base.path, base.revision
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as problem:
        raise _not_loaded("tokenizer", path, problem) from problem
    # Where there are no files, transformers makes up a tokenizer without tokens, and everything it reads is empty.
    names, folder = sorted(set(tokenizer.vocab_files_names.values())), Path(path)
    if names and folder.is_dir() and not any((folder / name).exists() for name in names):
        raise ModelError(f"{path!r} has no tokenizer (none of {', '.join(names)}). {_ADVICE}.")
    return tokenizer


def check_files(path: str, *, allow_pickle: bool = False) -> None:
    """Refuse a model directory without configuration or weights, at no cost; a hub id is looked up when it is loaded.

    The folder of an adapter is looked at with its base.

    Raises:
      ModelError: names what is missing.
    """
    base = base_of(path)
    if base is None:
        _check_directory(path, "config.json")
        _check_weights(path, allow_pickle)
    else:
        check_files(base.path, allow_pickle=allow_pickle)
        _check_weights(path, allow_pickle=False)


def context_length_of(
    path: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> ContextLength | None:
    """Most tokens a model reads as one model, from its configuration alone; None if it does not say."""
    base = base_of(path)
    if base is not None:
        path, revision = base.path, base.revision
    _check_directory(path, "config.json")
    try:
        config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as problem:
        raise _not_loaded("model", path, problem) from problem
    return context_length_in(config.get_text_config())


def load_language_model(
    path: str,
    tokenizer: Any,
    *,
    dtype: str = "float32",
    device: str | torch.device = "cpu",
    revision: str | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    attention: str | None = None,
    adapter: AdapterSettings | None = None,
    quantization: str | None = None,
    seed: int = 0,
) -> LanguageModel:
    """Load a causal language model from a directory or hub id, and make sure that our engine can serve it.

    Args:
      path: model directory, hub id such as "Qwen/Qwen3-0.6B-Base", or an adapter's folder, which is loaded on its base.
      tokenizer: the model's tokenizer, from `load_tokenizer` (loaded first, because its checks cost nothing).
      dtype: float32, bfloat16, float16 or float64.
      trust_remote_code: run Python code that comes with the model. Off unless you have read that code.
      allow_pickle: accept `pytorch_model.bin`, which can run code when it is opened. Off by default.
      attention: `attn_implementation` of transformers; None = its default for the architecture.
      adapter: put a fresh one into the model; not looked at where `path` is an adapter already.
      quantization: "4bit" on CUDA; None = none.
      seed: of a fresh adapter's weights.
    Raises:
      ModelError: missing or unreadable files, an adapter of another base; names what was looked for.
      ConfigurationError: an adapter for modules that are not there, or a quantisation that is not.
      UnsupportedArchitectureError: see `check_servable`.
    """
    check_files(path, allow_pickle=allow_pickle)
    noted = base_of(path)
    base = Base(path, revision) if noted is None else noted
    # The hub's progress bars would tear through our own display.
    transformers_logging.disable_progress_bar()
    try:
        module: Any = AutoModelForCausalLM.from_pretrained(
            base.path,
            dtype=DTYPES[dtype],
            revision=base.revision,
            trust_remote_code=trust_remote_code,
            use_safetensors=None if allow_pickle else True,
            attn_implementation=attention,
            **({} if quantization is None else quantised(quantization, DTYPES[dtype], device)),
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as problem:
        if isinstance(problem, ConfigurationError):
            raise
        raise _not_loaded("model", base.path, problem) from problem
    # Rollouts and losses must see the same distribution, so dropout stays off throughout, also while training.
    module.eval()
    fitted = None
    if noted is not None or adapter is not None:
        # Numbers that were rounded twice, or quantised, cannot be compared with those of the files.
        is_comparable = dtype != "float16" and quantization is None
        base = Base(base.path, base.revision, fingerprint(module) if is_comparable else None)
        # Before the model moves to its device, so that a fresh adapter is the same on all of them.
        if noted is not None:
            fitted = read_adapter(module, Path(path), base)
        elif adapter is not None:
            fitted = add_adapter(module, adapter, base, seed)
    if noted is not None and (Path(path) / "generation_config.json").is_file():
        module.generation_config = GenerationConfig.from_pretrained(path)
    if quantization is None:  # quantised weights are made where they stay
        module.to(device)
    model = LanguageModel(module, tokenizer, stop_ids_of(module, tokenizer), name=path, adapter=fitted)
    check_servable(model)
    return model


_ADVICE = "Give a model directory (config.json, *.safetensors, tokenizer.json) or a Hugging Face hub id"


def _check_directory(path: str, file_name: str) -> None:
    folder = Path(path)
    if folder.is_dir() and not (folder / file_name).exists():
        raise ModelError(f"{path!r} has no {file_name}, so it is not a model directory. {_ADVICE}.")
    if not folder.exists() and (path.startswith((".", "/", "~")) or path.count("/") > 1):
        raise ModelError(f"model directory {path!r} does not exist. {_ADVICE}.")
    if not folder.exists():
        check_hub(path, "model")


def _check_weights(path: str, allow_pickle: bool) -> None:
    folder = Path(path)
    if not folder.is_dir() or any(folder.glob("*.safetensors")):
        return
    if not any(folder.glob("*.bin")):
        raise ModelError(f"{path!r} has a config.json but no weights (*.safetensors). {_ADVICE}.")
    if not allow_pickle:
        raise ModelError(
            f"{path!r} has only pickled weights (*.bin), which can run code when opened; safetensors are expected. "
            "Convert them (load once, then `save_pretrained`), or set `allow_pickle = true` if you trust the file."
        )


def _not_loaded(what: str, path: str, problem: Exception) -> ModelError:
    where = "" if Path(path).exists() else " (no such directory here, so it was taken for a hub id)"
    return ModelError(f"no {what} could be loaded from {path!r}{where}: {in_short(problem)}. {_ADVICE}.")


def _identity(path: str) -> str:
    folder = Path(path).expanduser()
    return str(folder.resolve()) if folder.exists() else path
