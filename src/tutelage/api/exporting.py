"""A trained student as a model directory that stands alone."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage.api.arguments import check_output_folder
from tutelage.errors import ConfigurationError
from tutelage.models import DTYPES, check_saved, export_model, load_language_model, load_tokenizer
from tutelage.training import named_checkpoints

__all__ = ["Exported", "export"]


@dataclass(frozen=True)
class Exported:
    """A model that was written.

    Fields:
      source: whose weights these are: a checkpoint, a folder or a hub id.
      folder: a plain model directory.
    """

    source: str
    folder: Path

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON has it."""
        return {"source": self.source, "folder": str(self.folder)}


def export(model: str | Path, output: str | Path, *, checkpoint: str = "last", dtype: str = "float32") -> Exported:
    """Write a trained student as a plain model directory; an adapter is merged into its base.

    Adapters are merged in float32 whatever `dtype` is, and rounded afterwards. What was written is read back before it
    gets its name.

    Args:
      model: a run's folder, one of its checkpoints, or any model or adapter.
      output: a new folder for the model.
      checkpoint: of a run: "last" or "best".
      dtype: of the written weights.
    Raises:
      ConfigurationError, ModelError, OutputExistsError: one clear message each.
    """
    for name, value, known in (("checkpoint", checkpoint, ("last", "best")), ("dtype", dtype, DTYPES)):
        if value not in known:
            raise ConfigurationError(f"{name} is {value!r}; expected one of {', '.join(known)}.")
    model, output = str(model), Path(output)
    check_output_folder(output)
    path = _checkpoint_of(Path(model), checkpoint) if (Path(model) / "config.toml").is_file() else model
    loaded = load_language_model(path, load_tokenizer(path))
    beside = output.with_name(f".writing-{output.name}")
    try:
        check_saved(export_model(loaded, DTYPES[dtype], beside), None, beside)
        beside.rename(output)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return Exported(path, output)


def _checkpoint_of(run: Path, rule: str) -> str:
    kept = named_checkpoints(run / "checkpoints")
    if rule not in kept:
        raise ConfigurationError(
            f"the run {run} has no {rule} checkpoint yet. Train it on, or name another --checkpoint."
        )
    return str(kept[rule])
