"""Where rows come from: a JSONL, JSON or Parquet file, or a data set of the Hugging Face hub.

A row is a mapping from column names to whatever the source holds; which columns matter is for `problems.py` to know.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tutelage.errors import DataError

__all__ = ["Row", "excerpt", "rows_of", "short_name"]

Row = Mapping[str, Any]

_OTHER_FILE_ENDINGS = {".csv", ".tsv", ".txt", ".md", ".arrow", ".gz", ".zst", ".bz2", ".xz", ".zip", ".tar"}
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?(:[\w.-]+)?")


def short_name(source: str) -> str:
    """Stem of the file, or the data set's name without its owner."""
    if Path(source).suffix.lower() in _READERS:
        return Path(source).stem
    return source.split(":")[0].split("/")[-1]


def rows_of(source: str, split: str) -> Iterator[tuple[str, Row]]:
    """Every row of a file or hub data set, each with the words that name its place ("row 3", counted from 0).

    Raises:
        DataError: a source that is not there or cannot be read, or a row that is no object with columns.
    """
    path = Path(source)
    ending = path.suffix.lower()
    if ending in _READERS:
        if not path.is_file():
            raise DataError(
                f"{source} is not there (looked from {Path.cwd()}); expected a file."
                " Check data.path: it is relative to the directory in which the command runs."
            )
        return _READERS[ending](path)
    if path.exists() or ending in _OTHER_FILE_ENDINGS or not _HUB_ID.fullmatch(source):
        found = (
            "a directory" if path.is_dir() else f"a path ending in {ending!r}" if ending else "no name of a data set"
        )
        raise DataError(
            f"data.path is {source!r}, {found}; expected a .jsonl, .json or .parquet file, or a hub data set"
            ' such as "openai/gsm8k:main". Convert the file to one of those.'
        )
    return _hub_rows(source, split)


def _jsonl_rows(path: Path) -> Iterator[tuple[str, Row]]:
    row_number = 0
    with path.open("rb") as lines:  # as bytes: str.splitlines would also split at U+2028 within a JSON string
        for line_number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            place = f"row {row_number} (line {line_number})"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(
                    f"{path}, line {line_number} is not JSON ({error}): {excerpt(line)}; expected one JSON object per"
                    " line. Repair or remove the line; a file with one list of objects needs the ending .json."
                ) from error
            yield place, _object(row, f"{path}, {place}")
            row_number += 1


def _json_rows(path: Path) -> Iterator[tuple[str, Row]]:
    try:
        rows = json.loads(path.read_bytes() or b"[]")
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path} is not JSON ({error}); expected a list of objects."
            " Repair the file; one with an object per line needs the ending .jsonl."
        ) from error
    if not isinstance(rows, list):
        raise DataError(
            f"{path} holds a JSON {type(rows).__name__}; expected a list of objects."
            ' Put the objects into one list: [{"problem": ..., "answer": ...}, ...].'
        )
    for row_number, row in enumerate(rows):
        place = f"row {row_number}"
        yield place, _object(row, f"{path}, {place}")


def _parquet_rows(path: Path) -> Iterator[tuple[str, Row]]:
    import pyarrow
    import pyarrow.parquet

    row_number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    yield f"row {row_number}", row
                    row_number += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            f"{path} cannot be read as Parquet ({error}); expected a complete .parquet file. Fetch or write it again."
        ) from error


def _hub_rows(source: str, split: str) -> Iterator[tuple[str, Row]]:
    import datasets

    name, _, configuration = source.partition(":")
    try:
        rows = datasets.load_dataset(name, configuration or None, split=split)
    except (OSError, ValueError) as error:  # not found, no network, no such configuration or split
        raise DataError(
            f"data.path is {source!r}, no file here, and the hub gave no such data set with split {split!r} ({error});"
            ' expected a .jsonl, .json or .parquet file, or "owner/name" or "owner/name:configuration" on the hub.'
            " Check data.path, data.split and the network."
        ) from error
    for row_number, row in enumerate(rows):
        yield f"row {row_number}", row


_READERS = {".jsonl": _jsonl_rows, ".json": _json_rows, ".parquet": _parquet_rows}


def _object(row: object, where: str) -> Row:
    if not isinstance(row, dict):
        raise DataError(
            f"{where} is a JSON {type(row).__name__}: {excerpt(row)}; expected an object with named columns."
            ' Write it as {"problem": ..., "answer": ...}.'
        )
    return row


def excerpt(value: object, max_characters: int = 80) -> str:
    """A value as an error message shows it: its beginning."""
    shown = repr(value)
    return shown if len(shown) <= max_characters else shown[:max_characters] + "..."
