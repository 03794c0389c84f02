"""The folder of an adapter: which base does it name, and are that base's weights still the same?"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from tutelage.errors import ModelError
from tutelage.models.reading import read_json

__all__ = [
    "BASE",
    "CONFIG",
    "WEIGHTS",
    "Base",
    "base_of",
    "check_same_base",
    "fingerprint",
]

WEIGHTS, CONFIG, BASE = "adapter_model.safetensors", "adapter_config.json", "base.json"


@dataclass(frozen=True)
class Base:
    """The backbone that an adapter was made for.

    Fields:
      path, revision: where it is.
      sha256: of its weights; None = not known (other tools do not record it, and quantised weights are not compared).
    """

    path: str
    revision: str | None = None
    sha256: str | None = None


def base_of(path: str) -> Base | None:
    """The base of an adapter's folder; None if the path is no such folder.

    Raises:
      ModelError: the folder does not name its base, or that is a folder which is not there.
    """
    base, was_folder = _named_base(Path(path))
    if base is not None and was_folder and not Path(base.path).is_dir():
        raise ModelError(
            f"the adapter in {path!r} belongs to the model in {base.path!r}, which is not there. Put it back, or write "
            f'where it is now into "path" of {Path(path) / BASE}; relative paths begin in the directory of the command.'
        )
    return base


def _named_base(folder: Path) -> tuple[Base | None, bool]:
    """The base that an adapter's folder names, and whether it was a folder when the adapter was saved.

    For a base that was moved, "path" in base.json or peft's `base_model_name_or_path` is changed; its SHA-256 shows
    whether it is the same one.
    """
    if not (folder / CONFIG).is_file():
        return None, False
    if (folder / "config.json").is_file():
        raise ModelError(
            f"{str(folder)!r} holds a model (config.json) and an adapter ({CONFIG}), and it is not clear which one is "
            "meant. Move one of them to a folder of its own."
        )
    config = read_json(folder / CONFIG)
    noted = read_json(folder / BASE) if (folder / BASE).is_file() else {}
    own = {name: config.get(name) for name in ("base_model_name_or_path", "revision")}
    entries = own | {name: noted.get(name) for name in ("path", "sha256")}
    wrong = [name for name, value in entries.items() if value is not None and not isinstance(value, str)]
    named = [str(entries[name]) for name in ("path", "base_model_name_or_path") if entries[name]]
    if wrong or not entries["base_model_name_or_path"]:
        raise ModelError(
            f"{str(folder)!r} holds an adapter, but its {CONFIG} does not name its model. Correct "
            f"`{wrong[0] if wrong else 'base_model_name_or_path'}` there."
        )
    place = next((name for name in named if Path(name).is_dir()), named[0])
    return Base(place, entries["revision"], entries["sha256"]), bool(noted.get("is_folder"))


def fingerprint(module: nn.Module) -> str:
    """SHA-256 of all weights in bfloat16, the same for every type of number that the model may be loaded in."""
    digest = hashlib.sha256()
    for name, weight in sorted(module.named_parameters()):
        digest.update(f"{name} {list(weight.shape)}".encode())
        digest.update(weight.detach().to("cpu", torch.bfloat16).contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_same_base(folder: Path, base: Base) -> None:
    """Refuse an adapter that was trained on other weights than its base has."""
    noted, _ = _named_base(folder)
    if noted is not None and noted.sha256 and base.sha256 and noted.sha256 != base.sha256:
        raise ModelError(
            f"the adapter in {str(folder)!r} was trained on other weights than {base.path!r} has now (SHA-256 "
            f"{noted.sha256[:12]} then, {base.sha256[:12]} now). Restore that model, or start a new run."
        )
