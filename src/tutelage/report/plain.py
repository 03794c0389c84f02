"""Text as text: names, prompts and answers are shown, and cannot act as markup, formulas or control sequences.

A page and a figure get their texts through this module. The page's template escapes < and &.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from tutelage.errors import printable

__all__ = ["as_label", "in_line", "in_page", "script_json", "shortened"]

SHOWN_LETTERS = 200
LABEL_LETTERS = 40  # beside a panel there is room for so many


def in_line(text: str) -> str:
    """As `printable`, on one line."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def as_label(text: str) -> str:
    """A name of a run or a set beside a line: on one line, and of one that is long its beginning and its end."""
    text = in_line(text)
    return text if len(text) <= LABEL_LETTERS else f"{text[: LABEL_LETTERS // 2]}…{text[-LABEL_LETTERS // 2 + 1 :]}"


def shortened(text: str, most: int = SHOWN_LETTERS) -> str:
    """The text, or its beginning and how much was cut off."""
    return text if len(text) <= most else f"{text[:most]} … ({len(text) - most:,} more characters)"


def in_page(value: object) -> object:
    """The text that a template prints for a value; our own markup stays as it is."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def script_json(value: Any, **_: object) -> str:
    """JSON that every browser reads: texts as they are shown, null where a number is not finite."""
    return json.dumps(_readable(value), allow_nan=False, sort_keys=True)


def _readable(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {printable(str(key)): _readable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_readable(item) for item in value]
    return value
