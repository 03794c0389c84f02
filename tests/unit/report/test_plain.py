"""Text is shown, whatever it is made of, and JSON is JSON for every reader."""

from __future__ import annotations

import json
import math

import pytest
from markupsafe import Markup

from tutelage.errors import printable
from tutelage.report.plain import LABEL_LETTERS, as_label, in_line, in_page, script_json, shortened


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("two\nlines\tof text", "two\nlines\tof text"),
        ("\x1b[31m\x00\x07\r\x7f\x9b", "\\x1b[31m\\x00\\x07\\r\\x7f\\x9b"),
        ("\u202eabc\u202c\u2066\u2069\u200f\u061c", "\\u202eabc\\u202c\\u2066\\u2069\\u200f\\u061c"),
        ("half \ud83d, whole 😀", "half \\ud83d, whole 😀"),
        ("\u200b\ufeff\uffff\U000e0041", "\\u200b\\ufeff\\uffff\\U000e0041"),
        ("مرحبا 你好 न\u200dह é", "مرحبا 你好 न\u200dह é"),
        ("<b>&amp;$x_1$ [red]", "<b>&amp;$x_1$ [red]"),
    ],
)
def test_what_cannot_be_shown_is_an_escape_that_can(text: str, expected: str) -> None:
    assert printable(text) == expected
    printable(text).encode("utf-8")


def test_labels_are_short_and_on_one_line() -> None:
    assert in_line("a\nb\tc") == "a\\nb\\tc"
    assert as_label("a name") == "a name"
    long = as_label("begin" + "x" * 1_000 + "end")
    assert len(long) <= LABEL_LETTERS and long.startswith("begin") and long.endswith("end")
    assert shortened("abc", 2) == "ab … (1 more characters)"


def test_a_page_gets_markup_as_it_is() -> None:
    assert in_page(Markup("<b>\x1b</b>")) == "<b>\x1b</b>"
    assert in_page("\x1b") == "\\x1b" and in_page(3) == 3


def test_json_of_a_page_has_no_number_that_is_none() -> None:
    value = {"a": [math.nan, math.inf, -math.inf, 0.5, 3, True, None], "b": {"\ud800": ("\x00", 10**400)}}
    text = script_json(value, sort_keys=True)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    read = json.loads(text, parse_constant=refuse)
    assert read == {"a": [None, None, None, 0.5, 3, True, None], "b": {"\\ud800": ["\\x00", 10**400]}}
