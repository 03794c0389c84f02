"""Is it the same model, the same tokenizer?  Content in a few digits, for what was computed once and is used again."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from tutelage.files import sha256_of
from tutelage.models.loading import check_files
from tutelage.models.vocabulary import PROBE_TEXT

__all__ = ["tokenizer_fingerprint", "weights_fingerprint"]

NOT_THE_MODEL = ("_name_or_path", "transformers_version", "torch_dtype", "dtype")  # keys of config.json that may differ


def weights_fingerprint(
    path: str, *, revision: str | None = None, trust_remote_code: bool = False, allow_pickle: bool = False
) -> str:
    """Of a directory, the SHA-256 of its weights and configuration, wherever it lies; of a hub id, its commit.

    Reads every byte of the weights, seconds per gigabyte; a hub id costs one small file.

    Raises:
      ModelError: there is no such model directory, or it has no weights.
    """
    check_files(path, allow_pickle=allow_pickle)
    folder = Path(path)
    if not folder.is_dir():
        config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code)
        return f"hub {path} at {getattr(config, '_commit_hash', None) or revision}"
    files = sorted([*folder.glob("*.safetensors"), *(folder.glob("*.bin") if allow_pickle else [])])
    settings = json.loads((folder / "config.json").read_text())
    content = {name: value for name, value in settings.items() if name not in NOT_THE_MODEL}
    return "sha256 " + _digest([content, {file.name: sha256_of(file) for file in files}])


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Of what `check_same_tokenizer` compares: the text of every id, and the cut of a probe text."""
    cut = tokenizer(PROBE_TEXT, add_special_tokens=False)["input_ids"]
    return "sha256 " + _digest([sorted((int(i), token) for token, i in tokenizer.get_vocab().items()), list(cut)])


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
