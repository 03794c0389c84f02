r"""Finds the final answer in a response.

Standard library only, linear in the text, and total on any string. Whether two answers are equal is for `equality.py`.
"""

from __future__ import annotations

import re

from tutelage.tasks.notation import MAX_ANSWER_CHARACTERS, clean, unified, up_to_closing_brace
from tutelage.tasks.quantities import DIGITS, read_quantity

__all__ = ["after_thinking", "exact_match", "final_answer", "reference_answer"]

# A final answer stands at the end of a response; these bound the work.
MAX_TAIL_CHARACTERS = 100_000
MAX_BOXES = 50
_MAX_PHRASE_CHARACTERS = 300

_THINKING_OPENS, _THINKING_ENDS = "<think>", "</think>"
_ANSWER_OPENS, _ANSWER_ENDS = "<answer>", "</answer>"

_BOX = re.compile(r"\\{1,4}(?:boxed|fbox|framebox)\s{0,8}(?:\{|(?P<bare>\d(?![\w{])))")  # quoted LaTeX doubles backslashes
_LINE_AFTER_HASHES = re.compile(r"####[ \t]*([^\s#]+)[ \t]*$", re.MULTILINE)
_LAST_LINE_AFTER_HASHES = re.compile(r"(?:^|\n)####[ \t]*([^\n#]+)\s*$")
_ANNOUNCED = re.compile(r"\banswer(?:\s+\w+){0,5}?\s*(?:\bis\b\s*:?|:)(?!\s*$)\s*", re.IGNORECASE | re.MULTILINE)
_SENTENCE_END = re.compile(r"[.!?。](?=\s|\*|$)|\n")
_BREAK = re.compile(r",\s+(?=[^\W\d_]{2})|\s+\(|\s+(?:because|since|as|so)\s|;\s")
_MATHS = re.compile(r"\$\$(.{1,300}?)\$\$|\\\[(.{1,300}?)\\\]|\\\((.{1,300}?)\\\)|(?<![\\$])\$(?=\S)([^$\n]{1,300}?)(?<=[^\s\\])\$(?!\d)", re.DOTALL)
_WORD = re.compile(r"(?<![\\a-zA-Z{])[^\W\d_]{2,}(?![}a-zA-Z])")

_FINAL_NUMBER = re.compile(
    r"""
    (?<![\w.^_:]) (?<!\^\{) (?<!_\{) (?<!\}\{)   # not within a word, a number, an exponent, an index, a second argument
    -? \\?[$£€¥]? -?
    (?: \d{1,2}:\d\d(?!\d)
      | \\[dtc]?frac\{-?\d++\}\{\d++\}
      | \d++\x20\d++/\d++
      | DIGITS (?:\.\d++)? (?: /\d++ | [eE][-+]?\d++(?!\w) | \s?(?:\\times|\\cdot|[x*])\s?10\s?\^\s?(?:\{-?\d++\}|-?\d++) )?
      | \.\d++ (?:[eE][-+]?\d++(?!\w))?
    )
    (?: \\(?:pi(?![a-zA-Z])|sqrt\{\d++\}) )?
    (?: \\?% )?
    (?! \s*\^ (?!\s*\{?\\circ) )
    """.replace("DIGITS", DIGITS),
    re.VERBOSE | re.ASCII,
)


def after_thinking(response: str) -> str:
    """What a response says after its thinking; nothing where the thinking did not end.

    A response without <think> in which </think> stands was begun by the prompt's template.
    """
    _, ends, said = response.rpartition(_THINKING_ENDS)
    return "" if _THINKING_OPENS in said else said if ends else response


def final_answer(response: str) -> str | None:
    r"""What a response gives as its answer.

    It looks behind the thinking, within the last <answer>...</answer> if there is one, for the first of these: the last
    \boxed{...}, the number after ####, what "the answer is" announces, the formula in which the last number stands,
    the last number. Empty boxes do not count, of nested ones the inner one does. A response that was cut off inside its
    only box has no answer: "\boxed{12" may have been on its way to 125.

    Returns:
        The answer as it is written, or None where there is none or it is longer than 2,000 characters.
    """
    tail = _tagged(after_thinking(response)[-MAX_TAIL_CHARACTERS:])
    answer, was_opened = _last_box(tail)
    if answer is None and not was_opened:
        text = unified(tail)
        answer = _after_hashes(text) or _announced(text) or _last_number(text)
    return answer if answer is not None and len(answer) <= MAX_ANSWER_CHARACTERS else None


def reference_answer(answer: str) -> str:
    r"""The answer within a data set's answer column, which may be a whole solution ending in \boxed{18} or #### 18."""
    boxed, _ = _last_box(answer)
    if boxed:
        return boxed
    last_line = _LAST_LINE_AFTER_HASHES.search(answer[-MAX_ANSWER_CHARACTERS:])
    return last_line[1].strip() if last_line else _after_hashes(answer) or answer.strip()


def exact_match(response: str, answer: str) -> bool:
    r"""The last \boxed{...} after the thinking, or else the last line, is the answer letter for letter but for white space."""
    said = after_thinking(response)
    boxed, _ = _last_box(said[-MAX_TAIL_CHARACTERS:])
    lines = said.strip().splitlines()
    found = boxed if boxed is not None else lines[-1] if lines else ""
    return bool(found.strip()) and found.split() == answer.split()


def _tagged(text: str) -> str:
    before, ends, _ = text.rpartition(_ANSWER_ENDS)
    _, opens, inside = before.rpartition(_ANSWER_OPENS)
    return inside if ends and opens else text


def _last_box(text: str) -> tuple[str | None, bool]:
    """Content of the last complete box with something in it, and whether a box was left open after it."""
    was_opened = False
    for box in reversed(list(_BOX.finditer(text))[-MAX_BOXES:]):
        content = box["bare"] or up_to_closing_brace(text, box.end())
        if content is None:
            was_opened = True
        elif clean(content):  # the prompt's own "within \\boxed{{}}" is no answer
            return content.strip(), was_opened
    return None, was_opened


def _after_hashes(text: str) -> str | None:
    """The number after the last "####" that has nothing but a number after it, which is how GSM8K marks its answers.

    Other text there is a heading in Markdown.
    """
    numbers = [number for number in _LINE_AFTER_HASHES.findall(text) if read_quantity(clean(number)) is not None]
    return numbers[-1] if numbers else None


def _announced(text: str) -> str | None:
    """What the last "the answer is" or "Answer:" announces, if that reads as an answer: a quantity, a choice, a formula."""
    announcement = None
    for announcement in _ANNOUNCED.finditer(text):  # noqa: B007
        pass
    if announcement is None:
        return None
    phrase = text[announcement.end() : announcement.end() + _MAX_PHRASE_CHARACTERS]
    end = _SENTENCE_END.search(phrase)
    if end is not None and end.group() in "!?":
        return None
    phrase = phrase[: end.start()] if end else phrase
    for part in (phrase, _BREAK.split(phrase, maxsplit=1)[0]):
        part = part.strip()
        if _reads_as_answer(clean(part)):
            return part
    return None


def _reads_as_answer(text: str) -> bool:
    is_choice = re.fullmatch(r"\(?[A-J]\)?", text) is not None
    is_formula = re.search(r"\d|\\[a-zA-Z]", text) is not None and _WORD.search(text) is None
    return is_choice or is_formula or read_quantity(text) is not None


def _last_number(text: str) -> str | None:
    """The last number, or the formula that it belongs to: what follows the last "=" there."""
    number = None
    for number in _FINAL_NUMBER.finditer(text):  # noqa: B007
        pass
    if number is None:
        return None
    formula = None
    for maths in _MATHS.finditer(text):
        if maths.start() < number.end() and number.start() < maths.end():
            formula = next(part for part in maths.groups() if part is not None)
    if formula is None:
        start, end = text.rfind("\n", 0, number.start()) + 1, text.find("\n", number.end())
        line = text[start : end if end >= 0 else len(text)]
        _, equals, side = line.rpartition("=")
        formula = side if equals and "\\" in side and len(side) < _MAX_PHRASE_CHARACTERS else None
    if formula is not None and _WORD.search(formula) is None:
        side = re.split(r"(?<![<>!\\])=", formula)[-1].split(r"\approx")[0].strip()
        if re.search(r"\d", side):
            return side
    return number.group().replace(r"\$", "").replace("$", "")
