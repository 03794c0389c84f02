"""Responses with the same final answer, as each verifier sees it."""

from __future__ import annotations

from tests.support.rated_answers import HOSTILE
from tutelage.tasks import Verifier, answer_classes


def test_equal_answers_are_one_class_by_the_algebra_of_the_verifier() -> None:
    responses = [
        r"so \boxed{\frac{1}{2}}",
        "The answer is 3.",
        r"\boxed{0.5}",
        "no idea",
        r"\boxed{3}",
        r"\boxed{x^2-1}",
        r"\boxed{(x-1)(x+1)}",
    ]
    with Verifier("math") as verifier:
        assert answer_classes(verifier, responses, [True] * 7) == [0, 1, 0, -1, 1, 2, 2]


def test_letters_count_for_exact_and_a_function_judges_for_itself() -> None:
    responses = ["so\n0.5", "1/2", "well\n0.5", ""]
    assert answer_classes(Verifier("exact"), responses, [True] * 4) == [0, 1, 0, -1]
    by_length = Verifier(lambda response, answer: len(response) == len(answer))
    assert answer_classes(by_length, ["red", "blue", "tan"], [True] * 3) == [0, 1, 0]


def test_a_cut_response_has_the_answer_that_is_whole() -> None:
    responses = [r"\boxed{4}", r"\boxed{4} and", "it is 4"]
    with Verifier("math") as verifier:
        assert answer_classes(verifier, responses, [True, False, False]) == [0, 0, -1]
    with Verifier("math", truncated="wrong") as verifier:
        assert answer_classes(verifier, responses, [True, False, False]) == [0, -1, -1]


def test_any_text_has_a_class_or_none() -> None:
    for task in ("math", "exact"):
        with Verifier(task) as verifier:
            assert len(answer_classes(verifier, HOSTILE, [True] * len(HOSTILE))) == len(HOSTILE)
