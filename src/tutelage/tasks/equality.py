r"""Decides the comparisons that need no algebra: equal texts, quantities, choices, truth values, times of day.

Most answers of a run are plain numbers and are judged here, thousands per second. What is left goes to the worker
process of `verifiers.py`, in the spelling of `for_algebra`.
"""

from __future__ import annotations

import re

from tutelage.tasks.notation import MAX_ANSWER_CHARACTERS, clean, squeezed
from tutelage.tasks.quantities import are_equal, read_clock, read_quantity, without_unit

__all__ = ["compare_plainly", "for_algebra"]

_SAME_WORDS = {
    **{"yes": "true", "no": "false"},
    **dict.fromkeys(("nosolution", "nosolutions", r"\varnothing", r"\{\}"), r"\emptyset"),
}

# Letters stand for choices up to J; a reference of one such letter is a choice, and a label may stand before its text.
_CHOICE = re.compile(r"\(?([A-J])\)?")
_LABEL = re.compile(r"\(([A-Ja-j])\)[.:]?(?:\s.*)?|([A-Ja-j])(?:[).:](?:\s.*)?)?", re.DOTALL)
_CHOICES = re.compile(r"\(?[A-J]\)?(?:\s*(?:,|;|&|and)?\s*\(?[A-J]\)?){1,9}")

_DIGITS = re.compile(r"-?[0-9]{1,100}")
_NAME = re.compile(r"\A[a-zA-Z](?:_(?:\w|\{[^{}]*\}))?(?:\([a-zA-Z]\))?\s*=\s*(?=[^\s=][^=]*\Z)")
_WORDS = re.compile(r"[^\W\d_]{4,}(?:[\s,'-]+[^\W\d_]+)*+")
_POWER_OF_TEN = re.compile(r"(?<![\w.\\])(\d+(?:\.\d+)?|\.\d+)[eE]([-+]?\d{1,9})(?!\w)", re.ASCII)


def compare_plainly(candidate: str, reference: str) -> bool | None:
    """Whether two answers are equal, as far as that can be told without algebra; None = it cannot.

    Nothing else equals an empty or overlong answer.
    """
    if _DIGITS.fullmatch(candidate) and _DIGITS.fullmatch(reference):  # most answers of a run are; the rest costs more
        return int(candidate) == int(reference)
    candidate, reference = _without_lone_name(clean(candidate), clean(reference))
    if not candidate or not reference:
        return False
    squeezed_candidate, squeezed_reference = squeezed(candidate), squeezed(reference)
    if _word(squeezed_candidate) == _word(squeezed_reference):
        return True
    if max(len(candidate), len(reference)) > MAX_ANSWER_CHARACTERS:
        return False
    candidate_number, reference_number = read_quantity(candidate), read_quantity(reference)
    if candidate_number is not None and reference_number is not None:
        return are_equal(candidate_number, reference_number)
    for is_same in (_same_choice, _same_choices, _same_time):
        verdict = is_same(candidate, reference)
        if verdict is not None:
            return verdict
    if _WORDS.fullmatch(squeezed_candidate) and _WORDS.fullmatch(squeezed_reference):
        return False  # algebra would take words for products, and one for another with the same letters
    return None


def for_algebra(candidate: str, reference: str) -> tuple[str, str]:
    """Both answers as the algebra can read them: plain numbers for what we can read, no units, no e in a number."""
    candidate, reference = _without_lone_name(clean(candidate), clean(reference))
    return _for_algebra(candidate), _for_algebra(reference)


def _without_lone_name(one: str, other: str) -> tuple[str, str]:
    """Without the name in front of "x = 5" or "f(x) = x^2", where the other answer has no "="."""
    if ("=" in one) == ("=" in other):
        return one, other
    return _NAME.sub("", one), _NAME.sub("", other)


def _for_algebra(text: str) -> str:
    quantity = read_quantity(text)
    if quantity is not None and quantity.rounding == 0:
        value = quantity.value
        digits = (
            f"{value.numerator}" if value.denominator == 1 else rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
        )
        if len(digits) < MAX_ANSWER_CHARACTERS:
            return digits + r"\%" * quantity.is_percent
    return _POWER_OF_TEN.sub(r"\1 \\times 10^{\2}", without_unit(text))


def _word(text: str) -> str:
    return _SAME_WORDS.get(text, text)


def _same_choice(candidate: str, reference: str) -> bool | None:
    """(B), B) 12 and b are the choice B; a reference of one letter asks for nothing else."""
    choice, label = _CHOICE.fullmatch(reference), _LABEL.fullmatch(_plain(candidate))
    return None if choice is None or label is None else (label[1] or label[2]).upper() == choice[1]


def _same_choices(candidate: str, reference: str) -> bool | None:
    """AC, "A, C" and "A and C" are the choices A and C. Letters out of their order may be a product."""
    if not (_CHOICES.fullmatch(_plain(candidate)) and _CHOICES.fullmatch(_plain(reference))):
        return None
    one, other = (re.findall("[A-J]", text.replace("and", "")) for text in (candidate, reference))
    return one == other if sorted(set(one)) == one and sorted(set(other)) == other else None


def _same_time(candidate: str, reference: str) -> bool | None:
    one, other = read_clock(candidate), read_clock(reference)
    if one is None or other is None:
        return None
    return one[0] == other[0] and (one[1] == other[1] or not one[1] or not other[1])


def _plain(text: str) -> str:
    """The text with what its fonts hold, and a tie as the space that it is."""
    text = re.sub(r"\\(?:text|math)(?:bf|rm|it)?\s{0,3}\{([^{}\\]*)\}", r"\1", text)
    return re.sub(r"~|\\(?=\s)", " ", text).strip()
