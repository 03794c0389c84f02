"""Texts of others in our messages: one line, short, and nothing that a terminal would obey."""

from __future__ import annotations

import pytest

from tutelage.errors import in_short, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("over\rwritten\x08", r"over\rwritten\x08"),
        ("\x9b31m \x7f \x00", r"\x9b31m \x7f \x00"),
        ("user\u202egpj.exe\u2066x\u2069", r"user\u202egpj.exe\u2066x\u2069"),
        ("a\u2028b\ufeff", r"a\u2028b\ufeff"),
        ("half \ud83d of a pair, a byte \udcff", r"half \ud83d of a pair, a byte \udcff"),
        ("größe 学习 👩‍🚀 [red] [/b] C:\\x\tone\ntwo", "größe 学习 👩‍🚀 [red] [/b] C:\\x\tone\ntwo"),
    ],
)
def test_what_a_terminal_would_obey_is_written_out(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(shown) == shown


def test_of_somebody_elses_error_the_first_line_is_told() -> None:
    assert in_short(ValueError("\n it broke\x1b[2J.\nat line 7")) == r"it broke\x1b[2J"
    assert in_short(KeyError()) == "KeyError"
    assert len(in_short(ValueError("x" * 10_000))) < 600
