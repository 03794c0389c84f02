"""A trained student as a model directory that stands alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage.api.arguments import check_output_folder
from tutelage.errors import ConfigurationError
from tutelage.hub import check_upload, upload_model
from tutelage.models import DTYPES, export_checked, load_language_model, load_tokenizer
from tutelage.report import model_card
from tutelage.training import named_checkpoints
from tutelage.training.checkpoint import step_of

__all__ = ["Exported", "export"]


@dataclass(frozen=True)
class Exported:
    """A model that was written.

    Fields:
      source: whose weights these are: a checkpoint, a folder or a hub id.
      folder: a plain model directory; of a run's checkpoint, with a model card.
      url: where it is on the hub; None = it was not put there.
    """

    source: str
    folder: Path
    url: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON has it."""
        return {"source": self.source, "folder": str(self.folder), "url": self.url}


def export(
    model: str | Path,
    output: str | Path,
    *,
    checkpoint: str = "last",
    dtype: str = "float32",
    push: str | None = None,
    private: bool = True,
) -> Exported:
    """Write a trained student as a plain model directory; an adapter is merged into its base.

    Adapters are merged in float32 whatever `dtype` is, and rounded afterwards. What was written is read back before it
    gets its name. A run's checkpoint gets a model card (README.md): what was trained on what, with which numbers.

    Args:
      model: a run's folder, one of its checkpoints, or any model or adapter.
      output: a new folder for the model.
      checkpoint: of a run: "last" or "best".
      dtype: of the written weights.
      push: OWNER/NAME under which the folder is put on the Hugging Face hub as well; None = it is not.
      private: only its owner sees it there.
    Raises:
      ConfigurationError, ModelError, OutputExistsError, ServerError: one clear message each.
    """
    for name, value, known in (("checkpoint", checkpoint, ("last", "best")), ("dtype", dtype, DTYPES)):
        if value not in known:
            raise ConfigurationError(f"{name} is {value!r}; expected one of {', '.join(known)}.")
    model, output = str(model), Path(output)
    check_output_folder(output)
    if push is not None:
        check_upload(push)
    path = _checkpoint_of(Path(model), checkpoint) if (Path(model) / "config.toml").is_file() else model
    card = _card_of(Path(path))
    loaded = load_language_model(path, load_tokenizer(path))
    export_checked(loaded, DTYPES[dtype], output, {} if card is None else {"README.md": card})
    return Exported(path, output, None if push is None else upload_model(output, push, private=private))


def _card_of(checkpoint: Path) -> str | None:
    """The card of a run's checkpoint; None for any other model."""
    run, step = checkpoint.absolute().parent.parent, step_of(checkpoint.name)
    return model_card(run, step) if step is not None and (run / "config.toml").is_file() else None


def _checkpoint_of(run: Path, rule: str) -> str:
    kept = named_checkpoints(run / "checkpoints")
    if rule not in kept:
        raise ConfigurationError(
            f"the run {run} has no {rule} checkpoint yet. Train it on, or name another --checkpoint."
        )
    return str(kept[rule])
