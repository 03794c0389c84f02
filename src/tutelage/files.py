"""Files that appear whole or not at all: written beside their place, then renamed into it; and known by their sums."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["json_line", "json_text", "named", "sha256_of", "write_whole", "written_whole"]


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; renamed to `path` when the block ends well, removed when it does not."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with named(path):
            yield partial
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Let an OSError of the block name the file that it is about, which one of a write (a full disk) does not."""
    try:
        yield
    except OSError as problem:
        problem.filename = problem.filename or str(path)
        raise


def write_whole(path: Path, text: str) -> None:
    """Write a text file so that a killed process leaves the old content or the new, never half of it."""
    with written_whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


def json_line(record: Mapping[str, Any]) -> str:
    """A line of a JSON-lines file; see `json_text`."""
    return json_text(record) + "\n"


def json_text(content: Any, indent: int | None = None) -> str:
    """A JSON text that every reader takes: null stands for a number that is not finite."""
    try:
        return json.dumps(content, allow_nan=False, indent=indent)
    except ValueError:  # rare, so that others do not pay for the search
        return json.dumps(_finite(content), allow_nan=False, indent=indent)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
