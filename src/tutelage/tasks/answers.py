r"""Finds the final answer in a response, and decides the comparisons that need no algebra.

Standard library only, linear in the text, and total on any string: most answers of a run are plain numbers and are
judged here, thousands per second. Whatever is left goes to the worker process of `verifiers.py`.
"""

from __future__ import annotations

import re
from fractions import Fraction

__all__ = ["clean", "compare_plainly", "exact_match", "final_answer", "reference_answer"]

# A final answer stands at the end of a response, and a longer "answer" than this is none. All of these bound the work.
MAX_TAIL_CHARACTERS = 100_000
MAX_ANSWER_CHARACTERS = 2_000
MAX_BOXES = 50
_MAX_WRAPPINGS = 8

_BOX = re.compile(r"\\{1,4}(?:boxed|fbox)\s{0,8}\{")  # up to four backslashes: models that quote LaTeX double them
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # an escaped brace is a token of its own, and so does not count
_LINE_AFTER_HASHES = re.compile(r"####[ \t]*([^\s#]+)[ \t]*$", re.MULTILINE)

# possessive and bounded, so that no text makes the search slow
_DIGITS = r"(?:\d{1,3}(?:,\d{3}){1,20}+(?!\d)|\d++)"
_FINAL_NUMBER = re.compile(
    r"""
    (?<![\w.^_]) (?<!\^\{) (?<!_\{) (?<!\}\{)   # not within a word, a number, an exponent, an index, a second argument
    -? \\?\$? -?
    (?: \\[dt]?frac\{-?\d++\}\{\d++\} | DIGITS (?:\.\d++)? (?:/\d++)? | \.\d++ )
    (?: \\?% )?
    (?! \s*\^ )
    """.replace("DIGITS", _DIGITS),
    re.VERBOSE | re.ASCII,
)

_PLAIN_NUMBER = re.compile(
    rf"(?P<sign>[-+]?)(?:\\?\$)?(?:(?P<whole>{_DIGITS})(?P<decimals>\.\d*)?(?:/(?P<divisor>\d+))?|(?P<only_decimals>\.\d+))"
    r"(?P<percent>\\?%)?",
    re.ASCII,
)
_PLAIN_FRACTION = re.compile(r"(?P<sign>[-+]?)\\[dt]?frac\{(?P<over>-?\d+)\}\{(?P<under>\d+)\}", re.ASCII)
_MAX_PLAIN_CHARACTERS = 200

# math-verify rounds to six digits: numbers further apart than this are different for it too
_SURELY_DIFFERENT = Fraction(1, 100_000)


def final_answer(response: str) -> str | None:
    r"""What a response gives as its answer: its last \boxed{...}, else what follows ####, else its last number.

    Empty boxes do not count, of nested ones the inner one does. A response that was cut off inside its only box has no
    answer: "\boxed{12" may have been on its way to 125.

    Returns:
        The answer as it is written, or None where there is none or it is longer than 2,000 characters.
    """
    tail = response[-MAX_TAIL_CHARACTERS:]
    answer, was_opened = _last_box(tail)
    if answer is None and not was_opened:
        answer = _after_hashes(tail) or _last_number(tail)
    return answer if answer is not None and len(answer) <= MAX_ANSWER_CHARACTERS else None


def reference_answer(answer: str) -> str:
    r"""The answer within a data set's answer column, which may be a whole solution ending in \boxed{18} or #### 18."""
    boxed, _ = _last_box(answer)
    return boxed or _after_hashes(answer) or answer.strip()


def _last_box(text: str) -> tuple[str | None, bool]:
    """Content of the last complete box with something in it, and whether a box was left open after it."""
    was_opened = False
    for box in reversed(list(_BOX.finditer(text))[-MAX_BOXES:]):
        content = _up_to_closing_brace(text, box.end())
        if content is None:
            was_opened = True
        elif clean(content):  # the prompt's own "within \\boxed{{}}" is no answer
            return content.strip(), was_opened
    return None, was_opened


def _up_to_closing_brace(text: str, start: int) -> str | None:
    depth = 1
    for token in _BRACE.finditer(text, start, start + MAX_ANSWER_CHARACTERS + 1):
        depth += {"{": 1, "}": -1}.get(token.group(), 0)
        if depth == 0:
            return text[start : token.start()]
    return None


def _after_hashes(text: str) -> str | None:
    """The number after the last "####" that has nothing but a number after it, which is how GSM8K marks its answers.

    Other text there is a heading in Markdown.
    """
    numbers = [n for n in _LINE_AFTER_HASHES.findall(text) if _plain_number(clean(n)) is not None]
    return numbers[-1] if numbers else None


def _last_number(text: str) -> str | None:
    last = None
    for last in _FINAL_NUMBER.finditer(_unify(text)):  # noqa: B007
        pass
    return last.group().replace(r"\$", "").replace("$", "") if last else None


def _unify(text: str) -> str:
    r"""One spelling for what has several: the minus sign, and commas between thousands ("1{,}000", "1,\!000")."""
    return text.replace("−", "-").replace("{,}", ",").replace(r"\!", "")


def clean(text: str) -> str:
    """An answer without what only surrounds it: white space, math delimiters, braces, a period at the end."""
    text = _unify(text).strip()
    for _ in range(_MAX_WRAPPINGS):
        before = text
        if not text.endswith(r"\right."):
            text = text.rstrip(".").rstrip()
        for left, right in (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]")):
            inner = text[len(left) : -len(right)]
            is_whole = text.startswith(left) and text.endswith(right) and len(text) >= len(left) + len(right)
            if is_whole and left not in inner and right not in inner and not inner.endswith("\\"):
                text = inner.strip()
        if text.startswith("{") and _up_to_closing_brace(text, 1) == text[1:-1]:
            text = text[1:-1].strip()
        if text == before:
            break
    return text


def compare_plainly(candidate: str, reference: str) -> bool | None:
    """Whether two answers are equal, as far as that can be told without algebra; None = it cannot.

    Equal are the same text but for spacing and size commands, and numbers of the same value; "50%" is 50. Different are
    numbers that are further apart than the algebra's own rounding. Nothing else equals an empty or overlong answer.
    """
    candidate, reference = clean(candidate), clean(reference)
    if not candidate or not reference:
        return False
    if _squeeze(candidate) == _squeeze(reference):
        return True
    if max(len(candidate), len(reference)) > MAX_ANSWER_CHARACTERS:
        return False
    candidate_number, reference_number = _plain_number(candidate), _plain_number(reference)
    if candidate_number is None or reference_number is None:
        return None
    if candidate_number == reference_number:
        return True
    if candidate.endswith("%") or reference.endswith("%"):
        return None
    return False if abs(candidate_number - reference_number) > _SURELY_DIFFERENT else None


def _squeeze(text: str) -> str:
    """The text in one spelling of everything that does not change its meaning."""
    text = re.sub(r"\\(?:left|right)(?![a-zA-Z])|\\[,;:]", "", text)
    text = re.sub(r"\\[dt]frac(?![a-zA-Z])", r"\\frac", text)
    return re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", text)  # between two digits it may separate numbers


def _plain_number(text: str) -> Fraction | None:
    if len(text) > _MAX_PLAIN_CHARACTERS:
        return None
    if parts := _PLAIN_FRACTION.fullmatch(text):
        numerator, denominator = int(parts["over"]), int(parts["under"])
    elif parts := _PLAIN_NUMBER.fullmatch(text):
        digits = (parts["whole"] or "0").replace(",", "")
        decimals = (parts["decimals"] or parts["only_decimals"] or ".")[1:]
        numerator = int(digits + decimals)
        denominator = int(parts["divisor"] or 1) * 10 ** len(decimals)
    else:
        return None
    if denominator == 0:
        return None
    return Fraction(-numerator if parts["sign"] == "-" else numerator, denominator)


def exact_match(response: str, answer: str) -> bool:
    r"""The response's last \boxed{...}, or else its last line, is the answer letter for letter but for white space."""
    boxed, _ = _last_box(response[-MAX_TAIL_CHARACTERS:])
    lines = response.strip().splitlines()
    found = boxed if boxed is not None else lines[-1] if lines else ""
    return bool(found.strip()) and found.split() == answer.split()
