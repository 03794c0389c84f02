r"""One spelling for what has several: signs beyond ASCII, fonts, and what surrounds an answer.

Nothing here changes what an answer means, and nothing knows what a right answer is. Standard library only, linear in
the text, total on any string.
"""

from __future__ import annotations

import re
import unicodedata

__all__ = ["MAX_ANSWER_CHARACTERS", "clean", "squeezed", "unified", "up_to_closing_brace"]

MAX_ANSWER_CHARACTERS = 2_000  # a longer "answer" is none; it also bounds the work
_MAX_WRAPPINGS = 8

_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # an escaped brace is a token of its own, and so does not count

_SIGNS = {
    **dict.fromkeys("−–﹣－", "-"),
    **{"×": r"\times ", "·": r"\cdot ", "÷": r"\div ", "±": r"\pm ", "√": r"\sqrt ", "π": r"\pi ", "∞": r"\infty "},
    **{"≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "∈": r"\in ", "∪": r"\cup ", "∩": r"\cap "},
    **{"∅": r"\emptyset ", "°": r"^\circ ", "\N{DEGREE CELSIUS}": r"^\circ C", "\N{DEGREE FAHRENHEIT}": r"^\circ F"},
    **{sign: f"^{digit}" for digit, sign in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")},  # NFKC alone would make m³ into m3
    **{chr(space): " " for space in (0xA0, 0x2009, 0x202F)},
    # NFKC makes 1½ into 11/2, so a fraction is set apart first
    **{sign: f" {unicodedata.normalize('NFKC', sign).replace('⁄', '/')} " for sign in "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"},
}
_TO_ONE_SPELLING = str.maketrans(_SIGNS)

# A sign apart from its number is one where no other number can stand before it: "= - 5" and not "7 - 5".
_SIGN_APART = re.compile(r"((?:[=:(]|\bis)\s{0,3}[-+])\s{1,3}(?=[\d.\\$])")
_FONT = r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|math(?:rm|bf|it|sf|tt|bb|normal)|mbox|hbox|bf|operatorname)"
_FONT_GROUP = re.compile(rf"{_FONT}\s{{0,3}}\{{([^{{}}\\]*)\}}")
_STYLE = r"\\(?:displaystyle|textstyle|large|Large)(?![a-zA-Z])|\\color\s{0,3}\{\w*\}"
_WITHOUT_MEANING = re.compile(rf"{_STYLE}|\\(?:left|right|[bB]ig[lr]?)(?![a-zA-Z])|\\[,;:]|\\(?=\s)")
_COLOURED = re.compile(r"\\textcolor\s{0,3}\{\w*\}\s{0,3}\{([^{}]*)\}")
_WORDS = re.compile(r"[^\W\d_]{2}[^\W\d_,;.'!-]*+")  # letters that are words and not symbols; their case says nothing
_INTRODUCTION = re.compile(
    r"(?:(?:so|thus|hence|therefore),?\s+)?(?:(?:the|my|a|final|correct)\s+){0,3}ans(?:wer)?(?:\s+is\b\s*:?|\s*[:=])\s*"
    r"|A:\s+",
    re.IGNORECASE,
)

_WRAPPINGS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("`", "`"), ("['", "']"))
_GROUPS_AT_START = [re.compile(start) for start in (_FONT + r"\s{0,3}\{", r"\\textcolor\s{0,3}\{\w*\}\s{0,3}\{", r"\{")]
_STYLE_AT_START = re.compile(rf"\A(?:{_STYLE})\s*")


def unified(text: str) -> str:
    r"""The text with one spelling of every sign: "−", "×", "½" and "１" as -, \times, 1/2 and 1."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text.translate(_TO_ONE_SPELLING))
    text = text.replace("{,}", ",").replace(r"\!", "")
    return _SIGN_APART.sub(r"\1", text)


def clean(text: str) -> str:
    """An answer without what only surrounds it: white space, math delimiters, braces, Markdown, fonts, "Answer:"."""
    text = unified(text).strip()
    for _ in range(_MAX_WRAPPINGS):
        before = text
        text = _STYLE_AT_START.sub("", _without_introduction(text), count=1)
        if not text.endswith(r"\right."):
            text = text.rstrip(".").rstrip()
        for left, right in _WRAPPINGS:
            inner = text[len(left) : -len(right)]
            is_whole = text.startswith(left) and text.endswith(right) and len(text) >= len(left) + len(right)
            if is_whole and left not in inner and right not in inner and not inner.endswith("\\"):
                text = inner.strip()
        for opening in _GROUPS_AT_START:
            start = opening.match(text)
            if start and up_to_closing_brace(text, start.end()) == text[start.end() : -1]:
                text = text[start.end() : -1].strip()
        if text == before:
            break
    return text


def _without_introduction(text: str) -> str:
    """The answer after "The answer is", "Answer:" and the like, also where those stand in a font of their own."""
    plain = _FONT_GROUP.sub(r"\1", text, count=1) if text.startswith("\\") else text
    found = _INTRODUCTION.match(plain)
    return plain[found.end() :] if found and found.end() < len(plain) else text


def squeezed(text: str) -> str:
    """The text in one spelling of everything that does not change its meaning; not for the eye."""
    text = _WITHOUT_MEANING.sub("", text).replace("~", " ")
    text = _FONT_GROUP.sub(r"\1", _COLOURED.sub(r"\1", text))
    text = re.sub(r"\\[dtc]frac(?![a-zA-Z])", r"\\frac", text)
    text = re.sub(r"(?<=\d),\s+(?=\d{3}(?!\d))", ";", text)  # two numbers; without the space it is one
    text = re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", text)  # between two digits it may separate numbers
    return text.casefold() if _WORDS.fullmatch(text) else text


def up_to_closing_brace(text: str, start: int) -> str | None:
    """What stands between `start`, just inside a brace, and the brace that closes it; None where there is none."""
    depth = 1
    for token in _BRACE.finditer(text, start, start + MAX_ANSWER_CHARACTERS + 1):
        depth += {"{": 1, "}": -1}.get(token.group(), 0)
        if depth == 0:
            return text[start : token.start()]
    return None
