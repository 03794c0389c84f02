from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.tasks.answers import exact_match, final_answer, reference_answer
from tutelage.tasks.equality import compare_plainly, for_algebra
from tutelage.tasks.notation import clean


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (r"so \boxed{18}.", "18"),
        (r"\boxed{1}, no: \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed {7}", "7"),
        (r"\fbox{7}", "7"),
        (r"\\boxed{8}", "8"),
        (r"\boxed{\boxed{7}}", "7"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{a\} b}", r"a\} b"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
        (r"\boxed{5} and then \boxed{6", "5"),
        (r"I box it in \boxed{}. It is 4.", "4"),
        (r"within \boxed{{}}: \boxed{{18}}", "{18}"),
        (r"cut off in \boxed{12", None),
        (r"9 is \boxed{\frac{1}{2}", None),
        (r"\boxed{" + "1" * 3000 + "}", None),
        ("48/2 = <<48/2=24>>24\n#### 72", "72"),
        ("#### 18\n\nNext question: 3", "18"),
        ("#### Step 1: 5\nThe answer is 6.", "6"),
        ("#### $1,200", "$1,200"),
        ("the answer is $18.", "$18"),
        ("it costs $18.", "18"),
        ("it is 1,234,567 dollars", "1,234,567"),
        ("1{,}000", "1,000"),
        ("x = -5", "-5"),
        ("x = −5", "-5"),
        ("between 3-5", "5"),
        ("it is 50%.", "50%"),
        ("costs 3.50.", "3.50"),
        ("about .5", ".5"),
        ("the answer is 3/4.", "3/4"),
        (r"the answer is $-\frac{3}{4}$.", r"$-\frac{3}{4}$"),
        (r"so it is $-\frac{3}{4}$.", r"-\frac{3}{4}"),
        (r"2, and by that I mean $x^2$", "2"),
        (r"is 2^{10}", None),
        ("**18**", "18"),
        ("none", None),
        ("", None),
    ],
)
def test_final_answer(response: str, expected: str | None) -> None:
    assert final_answer(response) == expected


def test_reference_answers_may_be_whole_solutions() -> None:
    assert reference_answer("3 + 4 = 7\n#### 7") == "7"
    assert reference_answer(r"so we get $\boxed{\frac{1}{2}}$.") == r"\frac{1}{2}"
    assert reference_answer(" p - q ") == "p - q"


@pytest.mark.parametrize(
    ("response", "answer", "expected"),
    [
        ("Let me see.\n\nParis\n", "Paris", True),
        ("Paris\nno, Rome", "Paris", False),
        (r"\boxed{New   York} it is", "New York", True),
        ("paris", "Paris", False),
        ("", "", False),
        (" \n ", " ", False),
    ],
)
def test_exact_match(response: str, answer: str, expected: bool) -> None:
    assert exact_match(response, answer) is expected


HOSTILE = [
    "\\boxed{" * 150_000,
    "\\boxed{" * 70_000 + "}" * 70_000,
    "{" * 1_000_000,
    "\\" * 1_000_000,
    "#" * 1_000_000,
    "#### " * 200_000,
    "$" * 1_000_000,
    "." * 1_000_000,
    "1,234" + ",567" * 250_000 + "8",
    "1" * 1_000_000,
    "\\frac{" * 100_000,
    " " * 1_000_000 + "1",
    "1" + " " * 1_000_000 + "2",
    "1^" * 300_000,
    "-" * 1_000_000,
    "\\boxed{" + "{" * 900 + "}" * 900 + "}",
]


@pytest.mark.sweeps
@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_a_megabyte_of_anything_is_read_at_once(text: str) -> None:
    started = time.process_time()
    found = final_answer(text)
    compare_plainly(clean(found or "1"), clean(reference_answer(text)))
    compare_plainly(text, text[1:])
    for_algebra(text[:2000], text[-2000:])
    exact_match(text, text)
    assert time.process_time() - started < 5


latex = st.lists(
    st.sampled_from(["\\boxed{", "{", "}", "\\frac", "$", "\\(", "\\)", "1", "-", ",", ".", "%", "####", " ", "x"])
)


@pytest.mark.sweeps
@given(st.text() | latex.map("".join), st.text() | latex.map("".join))
@settings(max_examples=150, deadline=None)
def test_total_on_any_text(response: str, answer: str) -> None:
    found = final_answer(response)
    assert found is None or isinstance(found, str)
    assert compare_plainly(response, reference_answer(answer)) in (True, False, None)
    assert isinstance(exact_match(response, answer), bool)
