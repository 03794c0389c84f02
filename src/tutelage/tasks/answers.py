r"""Finds the final answer in a response.

Standard library only, linear in the text, and total on any string. Whether two answers are equal is for `equality.py`.
"""

from __future__ import annotations

import re

from tutelage.tasks.notation import MAX_ANSWER_CHARACTERS, clean, unified, up_to_closing_brace
from tutelage.tasks.quantities import DIGITS, read_quantity

__all__ = ["THINKING_OPENS", "after_thinking", "exact_answer", "exact_match", "final_answer", "reference_answer"]

# A final answer stands at the end of a response; these bound the work.
MAX_TAIL_CHARACTERS = 100_000
MAX_BOXES = 50
_MAX_PHRASE_CHARACTERS = 300
_MAX_WORDS = 5

THINKING_OPENS, _THINKING_ENDS = "<think>", "</think>"
_ANSWER_OPENS, _ANSWER_ENDS = "<answer>", "</answer>"

_BOX = re.compile(
    r"\\{1,4}(?:boxed|fbox|framebox)\s{0,8}(?:\{|(?P<bare>\d(?![\w{])))"
)  # quoted LaTeX doubles backslashes
_LINE_AFTER_HASHES = re.compile(r"####[ \t]*([^\s#]+)[ \t]*$", re.MULTILINE)
_LAST_LINE_AFTER_HASHES = re.compile(r"(?:^|\n)####[ \t]*([^\n#]+)\s*$")
_ANNOUNCEMENT = re.compile(
    r"\b(?:answer|option|choice)(?:\s+\w+){0,5}?\s*(?:\bis\b\s*:?|:)(?!\s*$)\s*", re.IGNORECASE | re.MULTILINE
)
_SENTENCE_END = re.compile(r"[.!?。](?=\s|\*|$)|\n")
_BREAK = re.compile(r",\s+(?=[^\W\d_]{2})|\s+\(|\s+(?:because|since|as|so)\s|;\s")
_MATHS = re.compile(
    r"\$\$(.{1,300}?)\$\$|\\\[(.{1,300}?)\\\]|\\\((.{1,300}?)\\\)|(?<![\\$])\$(?=\S)([^$\n]{1,300}?)(?<=[^\s\\])\$(?!\d)",
    re.DOTALL,
)
_SET_APART = re.compile(r"\$[^$]+\$|\\\(.+\\\)|\*\*[^*]+\*\*|\\text\w*\{[^{}]*\}", re.DOTALL)
_WORD = re.compile(r"(?<![\\\w{])[^\W\d_]{2,}(?![}a-zA-Z])")

_FINAL_NUMBER = re.compile(
    r"""
    (?<![\w.^_]) (?<!\d:) (?<!\^\{) (?<!_\{) (?<!\}\{)   # not within a word, a number, an exponent, an index
    -? \\?[$£€¥]? -?
    (?: \d{1,2}:\d\d(?!\d)
      | \\[dtc]?frac\{-?\d++\}\{\d++\}
      | \d++\x20\d++/\d++
      | DIGITS (?:\.\d++)? (?: /\d++ | [eE][-+]?\d++(?!\w) | \s{0,2}(?:\\times|\\cdot|[x*])\s{0,2}10\s?\^\s?POWER )?
      | \.\d++ (?:[eE][-+]?\d++(?!\w))?
    )
    (?: \\(?:pi(?![a-zA-Z])|sqrt\{\d++\}) )?
    (?: \\?% )?
    (?! \s*\^ (?!\s*\{?\\circ) )
    """.replace("DIGITS", DIGITS).replace("POWER", r"(?:\{-?\d++\}|-?\d++)"),
    re.VERBOSE | re.ASCII,
)


def after_thinking(response: str) -> str:
    """What a response says after its thinking; nothing where the thinking did not end.

    A response without <think> in which </think> stands was begun by the prompt's template.
    """
    _, ends, answer = response.rpartition(_THINKING_ENDS)
    return "" if THINKING_OPENS in answer else answer if ends else response


def final_answer(response: str, *, finished: bool = True) -> str | None:
    r"""What a response gives as its answer.

    It looks after the thinking, and within the last <answer>...</answer> if there is one, for the first of these: the
    last \boxed{...}, the number after ####, what "the answer is" announces, the last number or the formula that it
    stands in, the last formula. Empty boxes do not count, of nested ones the inner one does. A response that was cut
    off inside its only box has no answer: "\boxed{12" may have been on its way to 125.

    Args:
        response: all that the model wrote.
        finished: False = it was cut at the length limit. Then only what must be whole counts: a box or tag that is
            closed and that no other was opened after, or a line after ####.
    Returns:
        The answer as it is written, or None where there is none or it is longer than 2,000 characters.
    """
    text, is_tagged = _tagged(after_thinking(response)[-MAX_TAIL_CHARACTERS:])
    answer, was_opened = _last_box(text)
    if was_opened and not finished:
        return None
    if answer is None and not was_opened:
        is_whole = finished or is_tagged
        answer = _unboxed_answer(unified(text), is_tagged) if is_whole else _after_hashes(text.rpartition("\n")[0])
    return answer if answer is not None and len(answer) <= MAX_ANSWER_CHARACTERS else None


def reference_answer(answer: str) -> str:
    r"""The answer within a data set's answer column, which may be a whole solution ending in \boxed{18} or #### 18."""
    boxed, _ = _last_box(answer)
    if boxed:
        return boxed
    last_line = _LAST_LINE_AFTER_HASHES.search(answer[-MAX_ANSWER_CHARACTERS:])
    return last_line[1].strip() if last_line else _after_hashes(answer) or answer.strip()


def exact_match(response: str, answer: str, *, finished: bool = True) -> bool:
    """What `exact_answer` finds is the answer, white space aside."""
    found = exact_answer(response, finished=finished)
    return found is not None and found.split() == answer.split()


def exact_answer(response: str, *, finished: bool = True) -> str | None:
    r"""After the thinking, the last \boxed{...} or else the last line; None where both are empty.

    Of a response that is not finished, only the box counts.
    """
    text = after_thinking(response)
    boxed, _ = _last_box(text[-MAX_TAIL_CHARACTERS:])
    lines = text.strip().splitlines() if finished else []
    found = boxed if boxed is not None else lines[-1] if lines else ""
    return found.strip() or None


def _tagged(text: str) -> tuple[str, bool]:
    """What the last <answer>...</answer> holds, or the text itself; and which of both."""
    before, ends, _ = text.rpartition(_ANSWER_ENDS)
    _, opens, inside = before.rpartition(_ANSWER_OPENS)
    return (inside, True) if ends and opens else (text, False)


def _unboxed_answer(text: str, is_tagged: bool) -> str | None:
    marked = _after_hashes(text)
    if marked is not None:
        return marked
    announced = _phrases(text.strip()) if is_tagged else _announced(text)
    return (
        next(filter(_reads_as_answer, announced), None)
        or _last_number(text)
        or _last_formula(text)
        or next((phrase for phrase in announced if len(phrase.split()) <= _MAX_WORDS), None)
    )


def _last_box(text: str) -> tuple[str | None, bool]:
    """Content of the last complete box with something in it, and whether a box was left open after it."""
    was_opened = False
    for box in reversed(list(_BOX.finditer(text))[-MAX_BOXES:]):
        content = box["bare"] or up_to_closing_brace(text, box.end())
        if content is None:
            was_opened = True
        elif content.isalnum() or clean(content):  # the prompt's own "within \\boxed{{}}" is no answer
            return content.strip(), was_opened
    return None, was_opened


def _after_hashes(text: str) -> str | None:
    """The number after the last "####" that has nothing but a number after it, which is how GSM8K marks its answers.

    Other text there is a heading in Markdown.
    """
    for number in reversed(_LINE_AFTER_HASHES.findall(text)):
        if number.isdecimal() or read_quantity(clean(number)) is not None:
            return str(number)
    return None


def _announced(text: str) -> list[str]:
    """What the last "the answer is" or "Answer:" announces."""
    announcement = None
    for announcement in _ANNOUNCEMENT.finditer(text):  # noqa: B007
        pass
    return [] if announcement is None else _phrases(text[announcement.end() :])


def _phrases(text: str) -> list[str]:
    """The first sentence of a text, and its beginning up to the first break; nothing where it is a question."""
    text = text[:_MAX_PHRASE_CHARACTERS]
    end = _SENTENCE_END.search(text)
    if end is not None and end.group() in "!?":
        return []
    sentence = text[: end.start()] if end else text
    phrases = (sentence.strip(), _BREAK.split(sentence, maxsplit=1)[0].strip())
    return [phrase for phrase in phrases if clean(phrase)]


def _reads_as_answer(phrase: str) -> bool:
    """A quantity, a choice, a formula, or whatever is set apart by dollars, stars or a font."""
    text = clean(phrase)
    return _SET_APART.fullmatch(phrase) is not None or _WORD.search(text) is None or read_quantity(text) is not None


def _last_number(text: str) -> str | None:
    """The last number, or the formula that it belongs to."""
    number = None
    for number in _FINAL_NUMBER.finditer(text):  # noqa: B007
        pass
    if number is None:
        return None
    formula: str | None = None
    for maths in _MATHS.finditer(text):
        if maths.start() < number.end() and number.start() < maths.end():
            formula = maths[maths.lastindex or 0]
    if formula is None:  # not set apart; then it is one if it is an equation with LaTeX in it
        start, end = text.rfind("\n", 0, number.start()) + 1, text.find("\n", number.end())
        _, equals, side = text[start : end if end >= 0 else len(text)].rpartition("=")
        formula = side if equals and "\\" in side and len(side) < _MAX_PHRASE_CHARACTERS else None
    right_side = None if formula is None else _right_side(formula)
    return (
        right_side
        if right_side and re.search(r"\d", right_side)
        else number.group().replace(r"\$", "").replace("$", "")
    )


def _last_formula(text: str) -> str | None:
    formula = None
    for formula in _MATHS.finditer(text):  # noqa: B007
        pass
    return None if formula is None else _right_side(formula[formula.lastindex or 0])


def _right_side(formula: str) -> str | None:
    """What an equation says its left side is, exactly rather than about; None where words stand in it.

    An equation whose right side is 0 is the answer itself.
    """
    side = re.split(r"(?<![<>!\\])=", formula)[-1].split(r"\approx")[0].strip()
    return None if not side or _WORD.search(formula) else formula.strip() if side == "0" and "=" in formula else side
