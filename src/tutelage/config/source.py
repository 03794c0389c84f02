"""From the bytes of a run file, the text after `--set` or values of Python to TOML values that any run file could hold.

This does not depend on keys: encodings, syntax, and values that no setting can have, such as NaN, a number of more than
64 bits or a table nested a thousand deep. What a key means is up to `config.load` and the schema.
"""

from __future__ import annotations

import codecs
import math
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, time
from pathlib import Path, PurePath
from typing import Any

import tomli_w

from tutelage.errors import ConfigurationError, in_short, printable

__all__ = [
    "check_values",
    "grid_texts",
    "items_of",
    "override_texts",
    "plain_value",
    "read_table",
    "toml_text",
    "value_of",
]

# The first bytes of a text file, and the encoding that they mark. UTF-32's mark begins with UTF-16's, so it is first.
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
MAX_BYTES = 16 * 2**20  # of a run file
MAX_DEPTH = 32  # of tables and lists in each other
MAX_NUMBER = 2**63 - 1
DATES = ("data.template_date",)  # settings that are one


def read_table(path: Path) -> dict[str, Any]:
    """The table in a TOML file: in UTF-8, or in any Unicode encoding that is marked by its first bytes.

    Raises:
      ConfigurationError: no such file, too large, another encoding, not TOML, or a value that no setting can have.
    """
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise ConfigurationError(
            f"run file {str(path)!r} {found}. Give a TOML file such as recipes/trb.toml; `tutelage recipes copy trb` "
            "writes that one here."
        )
    if path.stat().st_size > MAX_BYTES:
        raise ConfigurationError(
            f"run file {str(path)!r} has more than {MAX_BYTES} bytes, which no run file needs. Give another file."
        )
    content = path.read_bytes()
    encoding = next((name for mark, name in BYTE_ORDER_MARKS.items() if content.startswith(mark)), "utf-8")
    if encoding == "utf-8" and b"\0" in content:
        raise ConfigurationError(
            f"run file {str(path)!r} has zero bytes, as UTF-16 without a byte order mark has. Save it as UTF-8."
        )
    try:
        table = tomllib.loads(content.decode(encoding).replace("\r\n", "\n").replace("\r", "\n"))
    except UnicodeDecodeError as problem:
        line = content[: problem.start].count(b"\n") + 1
        raise ConfigurationError(
            f"run file {str(path)!r} is not in {encoding.upper()} (line {line} has the byte "
            f"0x{content[problem.start]:02x}). Save it as UTF-8."
        ) from problem
    except RecursionError as problem:
        raise _too_deep(f"run file {str(path)!r}") from problem
    except ValueError as problem:  # TOMLDecodeError, and numbers of more digits than Python reads
        raise ConfigurationError(
            f"run file {str(path)!r} is not valid TOML: {in_short(problem)}. Correct that line."
        ) from problem
    check_values(table, f"run file {str(path)!r}")
    return table


def value_of(text: str) -> Any:
    """A TOML value if the whole text reads as one, otherwise the text itself, so that paths need no quotes."""
    if re.fullmatch(r"[+-]?\.\d+(e[+-]?\d+)?", text.strip(), re.IGNORECASE):  # .02, as every other tool takes it
        return float(text)
    items = items_of(text)
    if items is None or len(items) != 1 or text.rstrip().endswith(","):
        return text
    return text if isinstance(items[0], date | time) else items[0]  # a folder may well be called 2026-01-31


def items_of(text: str) -> list[Any] | None:
    """TOML values with commas between; None if the whole text does not read as such.

    Read as the inside of a list, a value cannot be ended by a line break or a comment before the text is.
    """
    try:
        table = tomllib.loads(f"items = [{text}]")
    except (ValueError, RecursionError):  # no TOML, more digits than Python reads, or too deep
        return None
    return list(table["items"]) if len(table) == 1 else None


def override_texts(overrides: Mapping[str, Any] | Sequence[str]) -> list[str]:
    """Overrides as the command line has them: a value given in Python is written as TOML.

    Args:
      overrides: key with dots -> value, or texts already.
    Raises:
      ConfigurationError: a value is None, or of a type that no setting has.
    """
    if isinstance(overrides, Mapping):
        return [f"{key}={toml_text(plain_value(value, str(key)))}" for key, value in overrides.items()]
    return [overrides] if isinstance(overrides, str) else list(overrides)


def grid_texts(grid: Mapping[str, Sequence[Any]] | Sequence[str]) -> list[str]:
    """The same of several values for each key: "key.path=v1,v2,v3"."""
    if isinstance(grid, Mapping):
        lists = {str(key): plain_value(list(values), str(key)) for key, values in grid.items()}
        return [f"{key}={','.join(map(toml_text, values))}" for key, values in lists.items()]
    return [grid] if isinstance(grid, str) else list(grid)


def plain_value(value: Any, key: str) -> Any:
    """A value of Python as TOML would give it: tables and lists are new, paths are text, NumPy's numbers are numbers.

    Raises:
      ConfigurationError: it is None, or of a type that no setting has.
    """
    if isinstance(value, Mapping):
        return {str(name): plain_value(item, f"{key}.{name}".removeprefix(".")) for name, item in value.items()}
    if isinstance(value, list | tuple | range):
        return [plain_value(item, f"{key}[{place}]") for place, item in enumerate(value)]
    if hasattr(value, "tolist"):  # of NumPy, PyTorch
        return plain_value(value.tolist(), key)
    if isinstance(value, PurePath):
        return str(value)
    if not isinstance(value, bool | int | float | str | date | time):
        raise ConfigurationError(
            f"{key} is {printable(repr(value))[:80]} of type {type(value).__name__}; expected text, a number, a truth "
            "value, a list or a table. Leave it out for the default."
        )
    return value


def toml_text(value: Any) -> str:
    """A plain value as TOML in one line."""
    if isinstance(value, dict):
        items = [tomli_w.dumps({name: 0}).removesuffix("0\n") + toml_text(item) for name, item in value.items()]
        return "{ " + ", ".join(items) + " }" if items else "{}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml_text, value)) + "]"
    return tomli_w.dumps({"value": value}).partition("=")[2].strip()


def check_values(table: Mapping[str, Any], source: str) -> None:
    """Refuse values that no setting can have, wherever they stand.

    Raises:
      ConfigurationError: NaN or infinity, a number beyond 64 bits, a date, broken Unicode, or nesting without end.
    """
    for key, value, depth in _leaves(table):
        if depth > MAX_DEPTH:
            raise _too_deep(f"{source}: {key[:80]}...")
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigurationError(f"{key} is {value}; expected a finite number. Correct it in {source}.")
        if isinstance(value, int) and abs(value) > MAX_NUMBER:  # not shown: Python does not write out the longest ones
            raise ConfigurationError(
                f"{key} is a number of {value.bit_length()} bits; no setting is beyond {MAX_NUMBER}. Correct it in "
                f"{source}."
            )
        if isinstance(value, date | time) and key not in DATES:
            raise ConfigurationError(
                f"{key} is the date or time {value}; no setting is one. Write it in quotes in {source} if it is text."
            )
        if isinstance(value, str) and re.search("[\ud800-\udfff]", key + value):
            raise ConfigurationError(
                f"{printable(key)} is '{printable(value)[:200]}', which is not valid Unicode. Correct it in {source}."
            )


def _leaves(table: Mapping[str, Any]) -> Iterator[tuple[str, Any, int]]:
    """Key, value and depth of everything in a table that is no table or list; without recursion, as it may be deep."""
    waiting: list[tuple[str, Any, int]] = [("", table, 0)]
    while waiting:
        key, value, depth = waiting.pop()
        if depth > MAX_DEPTH or not isinstance(value, Mapping | list):
            yield key, value, depth
        elif isinstance(value, list):
            waiting += [(f"{key}[{place}]", item, depth + 1) for place, item in enumerate(value)]
        else:
            waiting += [(f"{key}.{name}".removeprefix("."), item, depth + 1) for name, item in value.items()]


def _too_deep(where: str) -> ConfigurationError:
    return ConfigurationError(
        f"{where} has tables or lists nested more than {MAX_DEPTH} deep; no setting is. Take the nesting out."
    )
