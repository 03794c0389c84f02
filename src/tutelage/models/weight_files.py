"""What do the files of a model's weights hold?  Names, shapes and types, from the files' headers: no weight is read."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from tutelage.errors import ModelError
from tutelage.models.reading import ADVICE, read_json, reading

__all__ = ["files_of_weights", "stored_tensors", "weight_files"]

SAFETENSORS, PICKLES = "model.safetensors", "pytorch_model.bin"
TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}


def weight_files(path: str, *, allow_pickle: bool = False) -> list[Path]:
    """The files that a model directory's weights are read from: one, or those that an index names.

    Raises:
      ModelError: there are none, or the index names something else than safetensors files beside it.
    """
    folder = Path(path)
    named = read_json(folder / "config.json").get("transformers_weights")
    if named is not None:
        _check_plain(folder / "config.json", named, ".safetensors")
        return [folder / str(named)]
    for name in (SAFETENSORS, PICKLES) if allow_pickle else (SAFETENSORS,):
        if (folder / name).is_file():
            return [folder / name]
        if (folder / f"{name}.index.json").is_file():
            return _indexed(folder / f"{name}.index.json", Path(name).suffix)
    if others := [file.name for file in files_of_weights(folder)]:
        raise ModelError(
            f"{path!r} has neither {SAFETENSORS} nor {SAFETENSORS}.index.json, only {', '.join(others[:3])}. Rename "
            "the file, or save the model again with `save_pretrained`."
        )
    if not files_of_weights(folder, allow_pickle=True):
        raise ModelError(f"{path!r} has a config.json but no weights (*.safetensors). {ADVICE}.")
    raise ModelError(
        f"{path!r} has only pickled weights (*.bin), which can run code when opened; safetensors are expected. "
        "Convert them (load once, then `save_pretrained`), or set `allow_pickle = true` if you trust the file."
    )


def files_of_weights(folder: Path, *, allow_pickle: bool = False) -> list[Path]:
    """Every file of a folder that may hold weights, also of an adapter, and also those that no index names.

    `weight_files` says which of them a model is read from. A fingerprint covers all of them, so that it does not depend
    on how a loader chooses among them.
    """
    return sorted([*folder.glob("*.safetensors"), *(folder.glob("*.bin") if allow_pickle else [])])


def stored_tensors(files: Iterable[Path]) -> dict[str, Tensor]:
    """Every tensor of some weight files by its name: shape and type, without numbers.

    Raises:
      ModelError: a file cannot be read, or a name is there twice.
    """
    found: dict[str, Tensor] = {}
    for file in files:
        with reading("model", str(file)):
            tensors = _of_safetensors(file) if file.suffix == ".safetensors" else _of_pickle(file)
        if twice := sorted(found.keys() & tensors.keys()):
            raise ModelError(
                f"{str(file)!r} holds {twice[0]}, and so does another file of the model ({len(twice)} such tensors). "
                "Save the model again with `save_pretrained`."
            )
        found |= tensors
    return found


def _indexed(index: Path, suffix: str) -> list[Path]:
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise ModelError(f"{str(index)!r} has no `weight_map` of tensors to files. Restore it from the model's source.")
    for name in names.values():
        _check_plain(index, name, suffix)
    return [index.parent / name for name in sorted(set(names.values()))]


def _check_plain(file: Path, name: Any, suffix: str) -> None:
    """Refuse a name in `file` that is not that of a weight file beside it."""
    is_plain = isinstance(name, str) and name == Path(name).name and "\\" not in name and name.endswith(suffix)
    if not is_plain:
        raise ModelError(
            f"{str(file)!r} names {name!r}; expected plain names of *{suffix} files beside it. Restore the file from "
            "the model's source."
        )
    if not (file.parent / name).is_file():
        raise ModelError(f"{str(file)!r} names {name!r}, which is not there. Restore the missing file.")


def _of_safetensors(file: Path) -> dict[str, Tensor]:
    found = {}
    with safe_open(file, framework="pt") as opened:
        for name in opened.keys():  # noqa: SIM118  # no mapping
            entry = opened.get_slice(name)
            if entry.get_dtype() not in TYPES:
                raise ModelError(
                    f"{str(file)!r} holds {name} in the type {entry.get_dtype()}, which is not known here."
                )
            found[name] = torch.empty(entry.get_shape(), dtype=TYPES[entry.get_dtype()], device="meta")
    return found


def _of_pickle(file: Path) -> dict[str, Tensor]:
    content = torch.load(file, map_location="meta", weights_only=True)
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}
