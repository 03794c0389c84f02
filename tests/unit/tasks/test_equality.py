from __future__ import annotations

import pytest

from tutelage.tasks.equality import compare_plainly


@pytest.mark.parametrize(
    ("candidate", "reference", "expected"),
    [
        ("18", "18", True),
        ("142", "142.0", True),
        ("025", "25", True),
        ("-3", "3", False),
        ("1,234", "1234", True),
        (r"\$18.90", "18.9", True),
        ("-$5", "-5", True),
        ("50%", "50", True),
        (r"50\%", "0.5", True),
        ("1/2", "0.5", True),
        (r"\dfrac{7}{2}", "3.5", True),
        (r"-\frac{1}{2}", r"\frac{-1}{2}", True),
        ("0.33", "1/3", False),
        ("0.333333", "1/3", True),
        ("1/0", "1", None),
        ("1 2", "12", None),
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\dfrac{\pi}{2})", True),
        (r"\text{Evelyn}", r"\text{Evelyn}", True),
        ("p - q", "q - p", None),
        ("", "", False),
        ("$$", "$$", False),
        ("9" * 5000, "9" * 5000, True),
        ("9" * 5000, "8", False),
    ],
)
def test_compare_plainly(candidate: str, reference: str, expected: bool | None) -> None:
    assert compare_plainly(candidate, reference) is expected
