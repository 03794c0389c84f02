"""A user's model folder is read here, and whatever is wrong with it becomes one line.

`transformers`, `peft`, `tokenizers` and `safetensors` raise almost every kind of exception on damaged files. So kinds
are not listed at each place: whatever leaves one of the blocks below is about the folder that the block names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tutelage.errors import ModelError, TutelageError

__all__ = ["ADVICE", "brief", "read_json", "reading"]

ADVICE = "Give a model directory (config.json, *.safetensors, tokenizer.json) or a Hugging Face hub id"
MAX_CHARACTERS = 300  # of another library's message
INSTALL_LINES = {  # where the message does not say it
    "FlashAttention2": "pip install flash-attn --no-build-isolation",
    "FlashAttention3": "pip install flash-attn-3 --no-build-isolation",
}


@contextmanager
def reading(what: str, path: str) -> Iterator[None]:
    """Turn any exception of the block into a ModelError that names the folder or hub id.

    Args:
      what: model, tokenizer, adapter, ...
    Raises:
      ModelError: with the line that installs it where a package is missing.
    """
    try:
        yield
    except TutelageError:
        raise
    except ImportError as problem:
        line = _install_line(problem)
        raise ModelError(
            f"the {what} {path!r} needs a package that is not installed: {brief(problem)}."
            f"{'' if line in brief(problem) else f' Install it: {line}'}"
        ) from problem
    except Exception as problem:
        raise _not_read(what, path, problem) from problem
    except BaseException as problem:  # Rust's panics, such as those of `tokenizers`, are no Exception
        if type(problem).__name__ != "PanicException":
            raise
        raise _not_read(what, path, problem) from problem


def read_json(file: Path) -> dict[str, Any]:
    """A JSON file of a model folder that holds one object.

    Raises:
      ModelError: it does not.
    """
    with reading("file", str(file)):
        content = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ModelError(f"{str(file)!r} holds {type(content).__name__}; expected a JSON object. Restore the file.")
    return content


def _not_read(what: str, path: str, problem: BaseException) -> ModelError:
    if "trust_remote_code" in str(problem):
        return ModelError(
            f"the {what} {path!r} comes with Python code of its own, which is not run unless you say so. Read that "
            "code and set `trust_remote_code = true` beside the model's path, or give a model that transformers knows."
        )
    where = "" if Path(path).exists() else " (no such directory here, so it was taken for a hub id)"
    kind = "" if isinstance(problem, OSError | ValueError) else f"{type(problem).__name__}: "
    return ModelError(f"no {what} could be loaded from {path!r}{where}: {kind}{brief(problem)}. {ADVICE}.")


def brief(problem: BaseException) -> str:
    """The first sentence of a message; a line that ends in a colon says what the next one is about."""
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    text = ""
    for line in lines:
        text = f"{text} {line}".strip()
        if not text.endswith(":"):
            break
    text = (text or type(problem).__name__).rstrip(".:")
    return text if len(text) <= MAX_CHARACTERS else text[:MAX_CHARACTERS] + " ..."


def _install_line(problem: ImportError) -> str:
    text = str(problem)
    if found := re.search(r"pip install [^`'\")\n]+", text):
        return found.group().strip().rstrip(".")
    for name, line in INSTALL_LINES.items():
        if name in text:
            return line
    asked = re.search(r"requires? the (\S+) library", text)
    name = asked.group(1) if asked else problem.name or ""
    return f"pip install {name.partition('.')[0]}" if name else "the message names it"
