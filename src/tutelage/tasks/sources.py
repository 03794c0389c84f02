"""Where rows come from: a JSONL, JSON or Parquet file, or a data set of the Hugging Face hub, or a copy of one on disk.

A row is a mapping from column names to whatever the source holds; which columns matter is for `problems.py` to know.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tutelage.errors import DataError
from tutelage.hub import check_hub

__all__ = ["Row", "WrittenFloat", "check_text", "column_names", "excerpt", "name_and_split", "rows_of", "short_name"]

Row = Mapping[str, Any]

_OTHER_FILE_ENDINGS = {".csv", ".tsv", ".txt", ".md", ".arrow", ".gz", ".zst", ".bz2", ".xz", ".zip", ".tar"}
_PARQUET_ROWS = 64  # at once; a few bytes of a file may stand for megabytes in each of them
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?(:[\w.-]+)?")
_WITH_SPLIT = re.compile(r"([^\[\]]+)\[(.+)\]")
# What a folder has that was copied from the hub: the data set's card, or the folder that the hub's tools write into.
_REPOSITORY_MARKS = ("README.md", "data")


class WrittenFloat(float):
    """A number of a JSON file that remembers how it was written, since 1e16 and 0.30 may be an answer."""

    text: str

    def __new__(cls, text: str) -> WrittenFloat:
        number = super().__new__(cls, text)
        number.text = text
        return number


def short_name(source: str) -> str:
    """Stem of the file, or the data set's name without its owner."""
    if Path(source).suffix.lower() in _READERS:
        return Path(source).stem
    return name_and_split(source)[0].split(":")[0].split("/")[-1]


def name_and_split(source: str) -> tuple[str, str | None]:
    """A source and its split: "openai/gsm8k:main[test[:100]]" -> ("openai/gsm8k:main", "test[:100]").

    The split is None where the source has no brackets at its end, as files have none.
    """
    found = _WITH_SPLIT.fullmatch(source)
    return (source, None) if found is None else (found[1], found[2])


def rows_of(source: str, split: str, columns: Sequence[str] = ()) -> Iterator[tuple[str, Row]]:
    """Every row of a file or hub data set, each with the words that name its place ("row 3", counted from 0).

    Args:
      source: a file; "owner/name" or "owner/name:configuration" on the hub; or a folder with a copy of such a data set,
        also with a configuration.
      split: of a data set, as `datasets` reads it: "train", "train[:100]", "train+test". Files have none.
      columns: those that matter, of which some may not be there; a dot steps into nested values. Of a Parquet file or a
        hub data set nothing else is read. () = all.
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
        return _parquet_rows(path, columns) if ending == ".parquet" else _READERS[ending](path)
    name, _, _ = source.partition(":")
    if any((Path(name) / mark).exists() for mark in _REPOSITORY_MARKS):
        return _data_set_rows(source, split, columns)
    if path.exists() or ending in _OTHER_FILE_ENDINGS or not _HUB_ID.fullmatch(source):
        found = (
            "a directory" if path.is_dir() else f"a path ending in {ending!r}" if ending else "no name of a data set"
        )
        raise DataError(
            f"data.path is {source!r}, {found}; expected a .jsonl, .json or .parquet file, or a hub data set"
            ' such as "openai/gsm8k:main", or a folder with a copy of one (README.md or data).'
            " Convert the file to one of those."
        )
    check_hub(name, "dataset")
    return _data_set_rows(source, split, columns)


def _jsonl_rows(path: Path) -> Iterator[tuple[str, Row]]:
    row_number = 0
    with path.open("rb") as lines:  # as bytes: str.splitlines would also split at U+2028 within a JSON string
        for line_number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            place = f"row {row_number} (line {line_number})"
            try:
                row = json.loads(line, parse_float=WrittenFloat)
            except (ValueError, RecursionError) as error:
                raise DataError(
                    f"{path}, line {line_number} is not JSON ({error}): {excerpt(line)}; expected one JSON object per"
                    " line. Repair or remove the line; a file with one list of objects needs the ending .json."
                ) from error
            yield place, _object(row, f"{path}, {place}")
            row_number += 1


def _json_rows(path: Path) -> Iterator[tuple[str, Row]]:
    try:
        rows = json.loads(path.read_bytes() or b"[]", parse_float=WrittenFloat)
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


def _parquet_rows(path: Path, columns: Sequence[str] = ()) -> Iterator[tuple[str, Row]]:
    import pyarrow
    import pyarrow.parquet

    row_number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            chosen = _chosen(file.schema_arrow.names, columns)
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS, columns=chosen):
                for place in range(batch.num_rows):
                    yield f"row {row_number}", _parquet_row(batch, place, f"{path}, row {row_number}")
                    row_number += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            f"{path} cannot be read as Parquet ({error}); expected a complete .parquet file. Fetch or write it again."
        ) from error


def _parquet_row(batch: Any, place: int, where: str) -> Row:
    try:
        return {name: column[place].as_py() for name, column in zip(batch.schema.names, batch.columns, strict=True)}
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where} has text that is not UTF-8 ({error}); expected valid Unicode. Write the file again from the text."
        ) from error


def _chosen(names: Sequence[str], columns: Sequence[str]) -> list[str] | None:
    """Those of the columns that are there, whole even where only a value within them is asked for; None = all."""
    if not columns:
        return None
    wanted = {*columns, *(column.split(".")[0] for column in columns)}
    return [name for name in names if name in wanted]


def _data_set_rows(source: str, split: str, columns: Sequence[str]) -> Iterator[tuple[str, Row]]:
    name, _, configuration = source.partition(":")
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"data.path is {source!r}, a data set that the package `datasets` reads, which is not installed ({error})."
            " pip install datasets, or give a .jsonl, .json or .parquet file."
        ) from error
    try:
        rows = datasets.load_dataset(name, configuration or None, split=split)
    # Not found, no network, no such configuration or split, or a folder with a script.
    except (OSError, ValueError, RuntimeError) as error:
        place = "a folder here, but it has" if Path(name).is_dir() else "no file here, and the hub gave"
        raise DataError(
            f"data.path is {source!r}, {place} no such data set with split {split!r} ({error});"
            ' expected a .jsonl, .json or .parquet file, or "owner/name" or "owner/name:configuration" on the hub.'
            " Check data.path, data.split and the network."
        ) from error
    names = getattr(rows, "column_names", None)
    if names and (chosen := _chosen(names, columns)):  # pictures beside a question would be decoded for every row
        rows = rows.select_columns(chosen)
    for row_number, row in enumerate(rows):
        yield f"row {row_number}", row


_READERS = {".jsonl": _jsonl_rows, ".json": _json_rows, ".parquet": _parquet_rows}


def column_names(source: str, row: Row) -> list[str]:
    """The names of all columns, with those within them, for a message; a row may have been read in part."""
    path = Path(source)
    if path.suffix.lower() == ".parquet" and path.is_file():
        import pyarrow.parquet

        schema = pyarrow.parquet.read_metadata(path).schema
        leaves = [str(schema.column(place).path) for place in range(len(schema))]
        return list(dict.fromkeys(re.sub(r"\.list\..*", "", leaf) for leaf in leaves))
    return _nested_names(row)


def _nested_names(row: Row, prefix: str = "") -> list[str]:
    names = []
    for name, value in row.items():
        names += _nested_names(value, f"{prefix}{name}.") if isinstance(value, Mapping) and value else [prefix + name]
    return names


def _object(row: object, where: str) -> Row:
    if not isinstance(row, dict):
        raise DataError(
            f"{where} is a JSON {type(row).__name__}: {excerpt(row)}; expected an object with named columns."
            ' Write it as {"problem": ..., "answer": ...}.'
        )
    return row


def check_text(text: str, what: str, where: str) -> None:
    """Refuse text that cannot be kept or read: half of a surrogate pair, or NUL.

    Raises:
      DataError: names `where` and `what`.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where} has half of a surrogate pair in {what} (character {error.start}), which no tokenizer accepts and "
            "no file holds; expected valid Unicode. Repair the escapes (\\ud83d\\ude00 is one emoji)."
        ) from error
    if "\0" in text:
        raise DataError(
            f"{where} has a NUL character in {what} (character {text.index(chr(0))}), which no text has; expected "
            "valid text. Remove it: it is often a sign of text that was read in a wrong encoding."
        )


def excerpt(value: object, max_characters: int = 80) -> str:
    """A value as an error message shows it: its beginning."""
    shown = repr(value[: max_characters + 1] if isinstance(value, str | bytes) else value)
    return shown if len(shown) <= max_characters else shown[:max_characters] + "..."
