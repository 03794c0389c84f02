"""Reads problems from a JSONL, JSON or Parquet file, or from a data set of the Hugging Face hub.

A problem is what is asked and, where it is known, the right answer. Nothing here knows of tokens (`chat.py`) or of what
makes an answer right (`verifiers.py`). Nothing is dropped, shuffled or made unique: rows keep the order of their file,
and what cannot be used is refused with its row.
"""

from __future__ import annotations

import difflib
import json
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage.errors import ConfigurationError, DataError

__all__ = ["Message", "Problem", "load_problems"]

logger = logging.getLogger(__name__)

Message = dict[str, str]
Row = Mapping[str, Any]

DEFAULT_PROMPT_COLUMN = "problem"
DEFAULT_ANSWER_COLUMN = "answer"
# The layout that verl's data sets share (DAPO-Math-17k among them): chat messages, and the answer one level down.
VERL_PROMPT_COLUMN = "prompt"
VERL_ANSWER_COLUMN = "reward_model.ground_truth"

_OTHER_FILE_ENDINGS = {
    ".csv",
    ".tsv",
    ".txt",
    ".md",
    ".arrow",
    ".feather",
    ".gz",
    ".zst",
    ".bz2",
    ".xz",
    ".zip",
    ".tar",
}
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?(:[\w.-]+)?")
_MISSING = object()


@dataclass(frozen=True)
class Problem:
    """What is asked, and the right answer where it is known.

    Fields:
      id: names the problem in reports; unique within one file.
      prompt: plain text, or chat messages, each {"role": ..., "content": ...}; the last one is not the assistant's.
      answer: the right answer as text, verbatim ("142.0" stays "142.0"); None = not known or not asked for.
    """

    id: str
    prompt: str | tuple[Message, ...]
    answer: str | None = None

    @property
    def messages(self) -> tuple[Message, ...]:
        """The prompt as chat messages: plain text becomes one message of the user."""
        return ({"role": "user", "content": self.prompt},) if isinstance(self.prompt, str) else self.prompt

    @property
    def text(self) -> str:
        """The prompt as a person reads it: the plain text, or the messages' contents, one after the other."""
        return self.prompt if isinstance(self.prompt, str) else "\n\n".join(m["content"] for m in self.prompt)


def load_problems(
    path: str | Path,
    *,
    prompt_column: str = DEFAULT_PROMPT_COLUMN,
    answer_column: str | None = DEFAULT_ANSWER_COLUMN,
    split: str = "train",
    limit: int | None = None,
) -> list[Problem]:
    """All problems of a file or hub data set, in its order.

    Files in verl's layout need no column names: if both columns are left at their defaults, a file without a `problem`
    column that has `prompt` and `reward_model.ground_truth` is read through those two, and the log says so.

    Args:
        path: a .jsonl, .json (a list of objects) or .parquet file; any other name is a hub data set, "owner/name" or
          "owner/name:configuration".
        prompt_column: column with the question, as text or as a list of {"role", "content"} messages (also as the JSON
          text of such a list; other keys of a message are not read). A dot steps into nested values.
        answer_column: column with the right answer; None or "" = no answers wanted. A dot steps into nested values.
        split: which split of a hub data set; files have none.
        limit: read the first so many problems only.
    Returns:
        At least one problem. Ids are those of the `id` column if every row has one and no two are the same; otherwise
        "<file or data set name>/<row>" with rows counted from 0.
    Raises:
        DataError: missing, empty or unreadable file, or a row that cannot be used; the message names the row.
        ConfigurationError: a limit below 1.
    """
    if limit is not None and limit < 1:
        raise ConfigurationError(
            f"data.limit is {limit}; expected at least 1 problem. Leave data.limit out to read all of them."
        )
    source = str(path)
    problems: list[Problem] = []
    own_ids: list[str | None] = []
    for place, row in _rows(source, split):
        if not problems:
            prompt_column, answer_column = _columns_of_layout(source, row, prompt_column, answer_column)
        where = f"{source}, {place}"
        prompt = _prompt(_cell(row, prompt_column, "data.prompt_column", where), prompt_column, where)
        answer = _answer(_cell(row, answer_column, "data.answer_column", where), where) if answer_column else None
        own_ids.append(None if row.get("id") is None else str(row["id"]))
        problems.append(Problem(f"{_name(source)}/{len(problems)}", prompt, answer))
        if len(problems) == limit:
            break
    if not problems:
        raise DataError(
            f"{source} has no rows; expected at least one problem. Check that data.path names the right file"
            " and that it was written completely."
        )
    if None in own_ids or len(set(own_ids)) < len(own_ids):
        return problems
    return [Problem(str(own_id), p.prompt, p.answer) for own_id, p in zip(own_ids, problems, strict=True)]


def _name(source: str) -> str:
    if Path(source).suffix.lower() in _READERS:
        return Path(source).stem
    return source.split(":")[0].split("/")[-1]


# Rows -----------------------------------------------------------------------------------------------------------------


def _rows(source: str, split: str) -> Iterator[tuple[str, Row]]:
    """Every row with the words that name its place."""
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
                    f"{path}, line {line_number} is not JSON ({error}): {_excerpt(line)}; expected one JSON object per"
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
            f"{where} is a JSON {type(row).__name__}: {_excerpt(row)}; expected an object with named columns."
            ' Write it as {"problem": ..., "answer": ...}.'
        )
    return row


# Columns and cells ----------------------------------------------------------------------------------------------------


def _columns_of_layout(source: str, row: Row, prompt_column: str, answer_column: str | None) -> tuple[str, str | None]:
    """The columns to read: those asked for, or verl's where only the defaults were and they are not there."""
    asked = (prompt_column, answer_column or DEFAULT_ANSWER_COLUMN) != (DEFAULT_PROMPT_COLUMN, DEFAULT_ANSWER_COLUMN)
    has_default = _lookup(row, DEFAULT_PROMPT_COLUMN) is not _MISSING
    is_verl = all(_lookup(row, column) is not _MISSING for column in (VERL_PROMPT_COLUMN, VERL_ANSWER_COLUMN))
    if asked or has_default or not is_verl:
        return prompt_column, answer_column
    logger.info("%s has verl's layout: reading %s and %s", source, VERL_PROMPT_COLUMN, VERL_ANSWER_COLUMN)
    return VERL_PROMPT_COLUMN, VERL_ANSWER_COLUMN if answer_column else answer_column


def _lookup(row: Row, column: str) -> Any:
    if column in row:
        return row[column]
    value: Any = row
    for part in column.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return _MISSING
        value = value[part]
    return value


def _cell(row: Row, column: str, key: str, where: str) -> Any:
    value = _lookup(row, column)
    if value is _MISSING:
        names = _column_names(row)
        nearest = difflib.get_close_matches(column, names, n=1)
        remedy = f"did you mean {nearest[0]!r}? Set {key} to it" if nearest else f"set {key} to one of these"
        if key == "data.answer_column":
            remedy += ', or to "" if no answers are needed'
        raise DataError(
            f"{where} has no column {column!r}; it has {', '.join(map(repr, names)) or 'no columns'}."
            f" Expected {key} to name one; {remedy}."
        )
    if value is None:
        raise DataError(
            f"{where} has nothing (null) in column {column!r}; expected a value in every row."
            f" Complete or remove the row, or set {key} to another column."
        )
    return _python_value(value)


def _column_names(row: Row, prefix: str = "") -> list[str]:
    names = []
    for name, value in row.items():
        names += _column_names(value, f"{prefix}{name}.") if isinstance(value, Mapping) and value else [prefix + name]
    return names


def _python_value(value: Any) -> Any:
    """Lists, dicts and numbers of Python in place of those of NumPy or Arrow."""
    for convert in ("as_py", "tolist"):
        if hasattr(value, convert):
            return getattr(value, convert)()
    return value


def _prompt(value: Any, column: str, where: str) -> str | tuple[Message, ...]:
    if isinstance(value, str):
        messages = _messages_in_json(value)
        if messages is None:
            return _text(value, f"column {column!r}", where)
        value = messages
    if isinstance(value, Mapping) and all(isinstance(part, list) for part in value.values()):
        # how `datasets` returns a Sequence of dicts: one dict of lists
        value = [dict(zip(value, parts, strict=False)) for parts in zip(*value.values(), strict=False)]
    if not isinstance(value, list) or not all(_is_message(message) for message in value):
        raise DataError(
            f"{where}, column {column!r} holds {_excerpt(value)}; expected text, or a list of messages, each with text"
            ' under "role" and "content". Set data.prompt_column to a column that has one of these.'
        )
    if not value or value[-1]["role"] == "assistant":
        found = "an assistant's message at its end" if value else "an empty list of messages"
        raise DataError(
            f"{where}, column {column!r} holds {found}; expected a conversation that waits for the assistant's answer."
            " Remove the answer from the messages, or set data.prompt_column to another column."
        )
    _text(value[-1]["content"], f"the last message of column {column!r}", where)
    return tuple({"role": message["role"], "content": message["content"]} for message in value)


def _messages_in_json(text: str) -> list[Any] | None:
    if not text.lstrip().startswith("["):  # saves the attempt on almost every text
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    is_chat = isinstance(value, list) and bool(value) and all(_is_message(message) for message in value)
    return value if is_chat else None


def _is_message(value: object) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("role"), str) and isinstance(value.get("content"), str)


def _text(text: str, what: str, where: str) -> str:
    if not text.strip():
        raise DataError(
            f"{where} has only white space in {what}; expected a question. Complete or remove the row,"
            " or set data.prompt_column to another column."
        )
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise DataError(
            f"{where} has half of a surrogate pair in {what}, which no tokenizer accepts; expected valid Unicode."
            " Repair the row's escapes (\\ud83d\\ude00 is one emoji)."
        )
    return text


def _answer(value: Any, where: str) -> str:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    is_answer = isinstance(value, str | int | float) and value == value and str(value).strip()  # NaN is unlike itself
    if not is_answer:
        raise DataError(
            f"{where} has {_excerpt(value)} as its answer; expected text or a number. Complete or remove the row,"
            ' set data.answer_column to another column, or to "" if no answers are needed.'
        )
    return str(value)


def _excerpt(value: object, max_characters: int = 80) -> str:
    shown = repr(value)
    return shown if len(shown) <= max_characters else shown[:max_characters] + "..."
