"""Is it the same model, the same tokenizer?  Digests of their content, for results that are kept and used again."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from tutelage.errors import ModelError, in_short
from tutelage.files import sha256_of
from tutelage.models.loading import check_files
from tutelage.models.reading import read_json, reading
from tutelage.models.source import ModelSource
from tutelage.models.trainables.adapter_folder import CONFIG, base_of
from tutelage.models.vocabulary import PROBE_TEXT
from tutelage.models.weight_files import files_of_weights

__all__ = ["tokenizer_fingerprint", "weights_fingerprint"]

# Keys of either configuration that may differ.
NOT_THE_MODEL = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "base_model_name_or_path", "revision")


def weights_fingerprint(source: ModelSource | str) -> str:
    """The SHA-256 of a directory's weights and configuration, wherever it lies; the commit of a hub id.

    Reads every byte of the weights, seconds per gigabyte; a hub id costs one small file. The digest of an adapter
    covers the adapter and its base.

    Raises:
      ModelError: there is no such model directory, it has no weights, or they cannot be read.
    """
    source = ModelSource.of(source)
    path, revision, allow_pickle = source.path, source.revision, source.allow_pickle
    check_files(source)
    folder, base = Path(path), base_of(path)
    if not folder.is_dir():
        with reading("model", path):
            config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=source.trust_remote_code)
        return f"hub {path} at {getattr(config, '_commit_hash', None) or revision}"
    files = files_of_weights(folder, allow_pickle=allow_pickle)
    try:
        content = read_json(folder / ("config.json" if base is None else CONFIG))
        sums = {file.name: _sum_of_unchanged(file, file.stat().st_size, file.stat().st_mtime_ns) for file in files}
    except OSError as problem:
        raise ModelError(
            f"{path!r} cannot be read: {in_short(problem)}. Give a model directory that is whole."
        ) from problem
    content = {name: value for name, value in content.items() if name not in NOT_THE_MODEL}
    if base is None:
        return "sha256 " + _digest([content, sums])
    below = weights_fingerprint(replace(source, path=base.path, revision=base.revision))
    return "sha256 " + _digest([content, sums, below])


@lru_cache(maxsize=1024)
def _sum_of_unchanged(file: Path, size: int, changed_ns: int) -> str:
    """A run may ask for one file's sum several times, such as that of a teacher whose scores it reads."""
    return sha256_of(file)


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Of what `check_same_tokenizer` compares: the text of every id, and the cut of a probe text."""
    cut = tokenizer(PROBE_TEXT, add_special_tokens=False)["input_ids"]
    return "sha256 " + _digest([sorted((int(i), token) for token, i in tokenizer.get_vocab().items()), list(cut)])


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
