"""A trained student as a model directory that stands alone."""

from __future__ import annotations

import shutil
from pathlib import Path

from tutelage.errors import ConfigurationError
from tutelage.models import DTYPES, check_saved, export_model, load_language_model, load_tokenizer
from tutelage.training import named_checkpoints

__all__ = ["write_model"]


def write_model(model: str, output: Path, rule: str, dtype: str) -> str:
    """Write a model, or the checkpoint of a run that `rule` ("last" or "best") says, merged; returns its path.

    Adapters are merged in float32 whatever `dtype` is, and rounded afterwards. What was written is read back before it
    gets its name.
    """
    path = _checkpoint_of(Path(model), rule) if (Path(model) / "config.toml").is_file() else model
    loaded = load_language_model(path, load_tokenizer(path))
    beside = output.with_name(f".writing-{output.name}")
    try:
        check_saved(export_model(loaded, DTYPES[dtype], beside), None, beside)
        beside.rename(output)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return path


def _checkpoint_of(run: Path, rule: str) -> str:
    kept = named_checkpoints(run / "checkpoints")
    if rule not in kept:
        raise ConfigurationError(
            f"the run {run} has no {rule} checkpoint yet. Train it on, or name another --checkpoint."
        )
    return str(kept[rule])
