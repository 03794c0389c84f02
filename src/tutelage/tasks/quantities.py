r"""Numbers as people write them: 1,234.50, 4 1/2, \frac{7}{2}, 1.5e-3, 3 \times 10^8, -$5, 50%, 5 cm^2, 18 eggs.

A number is exact, however small or large. Two are equal if they are the same, or if one is a decimal fraction that was
rounded: with six significant digits or more it stands for what rounds to it. A unit is compared only with another one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

__all__ = ["Quantity", "are_equal", "read_clock", "read_quantity", "without_unit"]

_MAX_CHARACTERS = 200
_MAX_EXPONENT = 1_000  # beyond it the exact number would be too long to be looked at here
_MIN_ROUNDED_DIGITS = 6
_FLOAT_DIGITS = 15  # what a double is sure to hold: digits beyond them are noise of a computation
_FLOAT_NOISE = Fraction(1, 10**15)

# possessive and bounded, so that no text makes the search slow; thousands apart by commas or by spaces, not mixed
DIGITS = r"(?:\d{1,3}(?:,\d{3}){1,20}+(?!\d)|\d{1,3}(?:(?:\\,|[ ~])\d{3}){1,20}+(?!\d)|\d++)"
_TEN = r"(?:\\times|\\cdot|[x*])\s*10\s*\^\s*(?P<ten>[-+]?\d{1,9}|\{\s*[-+]?\d{1,9}\s*\})"
_POWER_OF_TEN = rf"(?:[eE](?P<e>[-+]?\d{{1,9}})(?!\w)|\s*{_TEN})"
_FRACTION = (
    r"\\[dtc]?frac\s*(?:\{\s*(?P<{0}over>-?\d+)\s*\}|(?P<{0}over1>\d))"
    r"\s*(?:\{\s*(?P<{0}under>\d+)\s*\}|(?P<{0}under1>\d))"
)
_CURRENCY = r"(?P<currency{}>\\?\$|£|€|¥|₹|Rs\.?)?"
_NUMBER = re.compile(
    rf"""
    (?P<sign>[-+]?)\s* {_CURRENCY.format(1)}\s* (?P<inner_sign>-?)
    (?: {_FRACTION.replace("{0}", "lone_")}
      | (?P<mixed>\d+)\s*{_FRACTION.replace("{0}", "mixed_")}
      | (?P<whole_part>\d+)\s+(?P<numerator>\d+)\s*/\s*(?P<denominator>\d+)
      | (?P<first>\d+)\s*\\over\s*(?P<second>\d+)
      | (?: (?P<whole>{DIGITS})(?P<decimals>\.\d*)? | (?P<only_decimals>\.\d+) )
        (?: /(?P<divisor>\d+) | {_POWER_OF_TEN} )?
    )
    \s*{_CURRENCY.format(2)}
    """,
    re.VERBOSE | re.ASCII,
)

_PERCENT = re.compile(r"\s*(?:\\?%|(?:\\(?:text|mathrm)\{\s*)?(?:percent|pct)\.?\s*\}?)", re.ASCII)
_IN_FONT = re.compile(r"\s*\\(?:text|mathrm|mbox|textrm|textit)\s{0,3}\{([^{}\\]*)\}\s*(?:\^\s*\{?\s*(\d)\s*\}?)?")
_CURRENCY_IN_FONT = re.compile(r"\A\\text\s{0,3}\{\s*(\\?[$£€¥₹]|Rs\.?)\s*\}")
_DEGREE = re.compile(r"\s*\^\s*(?:\\circ|\{\s*\\circ\s*\})\s*")
_SPACES = re.compile(r"\A(?:\\[ ,;:]|[\s~])+")
_UNIT_WORD = re.compile(r"([^\W\d_]+)\.?(?:\^\{?(\d)\}?)?")
_CLOCK = re.compile(
    r"(\d{1,2}):(\d{2})(?::(\d{2}))?(?:\s*(?:\\text\{\s*)?([ap])\.?\s?m\.?\s*\}?)?", re.IGNORECASE | re.ASCII
)

_SPELLINGS = {
    "metre": "m meter meters metres",
    "centimetre": "cm centimeter centimeters centimetres",
    "millimetre": "mm millimeter millimeters millimetres",
    "kilometre": "km kilometer kilometers kilometres",
    "inch": "in inches",
    "foot": "ft feet",
    "yard": "yd yards",
    "mile": "mi miles",
    "gram": "g grams",
    "kilogram": "kg kilograms",
    "pound": "lb lbs pounds",
    "ounce": "oz ounces",
    "litre": "L l liter liters litres",
    "millilitre": "ml mL milliliter milliliters millilitres",
    "second": "s sec secs seconds",
    "minute": "min mins minutes",
    "hour": "h hr hrs hours",
    "day": "days",
    "week": "weeks",
    "month": "months",
    "year": "yr yrs years",
    "dollar": "dollars USD $",
    "cent": "cents ¢",
    "euro": "euros EUR €",
    "pound sterling": "GBP £",
    "yen": "JPY ¥",
    "rupee": "rupees INR ₹ Rs",
    "degree": "degrees deg",
    "radian": "rad radians",
    "joule": "J joules",
    "newton": "N newtons",
    "watt": "W watts",
    "volt": "V volts",
    "kelvin": "K",
    "mile per hour": "mph",
    "kilometre per hour": "kmh kph",
}
_UNITS = {word: unit for unit, words in _SPELLINGS.items() for word in (unit, *words.split())}
_JOINING = {"per", "square", "sq", "cubic", "cu", "of"}
_SYMBOLS = {
    "pi",
    "sin",
    "cos",
    "tan",
    "cot",
    "sec",
    "csc",
    "log",
    "exp",
    "sqrt",
    "mod",
    "and",
    "or",
    "inf",
    "theta",
    "infinity",
}
_MAX_UNIT_WORDS = 4


@dataclass(frozen=True)
class Quantity:
    """A number with what stands around it.

    Fields:
      value: exactly as written; 50% is 50 here.
      rounding: half a unit of its last place, where that is a decimal fraction with digits enough to be a rounded one.
      is_percent: a percent sign or word follows.
      unit: in one spelling, "" where there is none. Words that are no unit, such as "eggs", are kept as they are.
      has_known_unit: the unit is one, and not merely what was counted.
    """

    value: Fraction
    rounding: Fraction
    is_percent: bool
    unit: str
    has_known_unit: bool


def read_quantity(text: str) -> Quantity | None:
    """The quantity that the whole text is, or None."""
    if len(text) > _MAX_CHARACTERS:
        return None
    text = _CURRENCY_IN_FONT.sub(r"\1", text)
    found = _NUMBER.match(text)
    if found is None:
        return None
    number = _value(found)
    currency = (found["currency1"] or found["currency2"] or "").strip("\\.")
    rest = text[found.end() :]
    percent = _PERCENT.match(rest)
    unit = _unit(rest[percent.end() :] if percent else rest)
    if number is None or unit is None:
        return None
    value, rounding = number
    if (found["sign"] == "-" and found["inner_sign"] != "-") or (found["sign"] != "-" and found["inner_sign"] == "-"):
        value = -value
    name, is_known = (_UNITS[currency], True) if currency else unit
    return Quantity(value, rounding, percent is not None, name, is_known)


def without_unit(text: str) -> str:
    r"""The text without a unit at its end: what stands in a text font, or known units: "2\sqrt{3} cm" is 2\sqrt{3}."""
    for place in re.finditer(
        r"(?<=[\w})])\s*(?=\\(?:text|mathrm|mbox|textrm|textit)\s{0,3}\{|\^\s*\{?\s*\\circ)", text
    ):
        if _unit(text[place.end() :]) is not None:
            return text[: place.start()]
    for place in list(re.finditer(r"(?<=[\w})])\s+(?=[^\W\d_])", text))[-_MAX_UNIT_WORDS:]:
        unit = _unit(text[place.end() :])
        if unit is not None and unit[1]:
            return text[: place.start()]
    return text


def are_equal(one: Quantity, other: Quantity) -> bool:
    """Whether two quantities are the same; a percentage is that many, or that many hundredths."""
    if one.has_known_unit and other.has_known_unit and one.unit != other.unit:
        return False
    slack = max(one.rounding, other.rounding)
    if one.is_percent == other.is_percent:
        return abs(one.value - other.value) <= slack
    percent, plain = (one, other) if one.is_percent else (other, one)
    return abs(percent.value - plain.value) <= slack or abs(percent.value / 100 - plain.value) <= max(
        percent.rounding / 100, plain.rounding
    )


def read_clock(text: str) -> tuple[tuple[int, ...], str] | None:
    """Hours, minutes and seconds of a time of day, with "a", "p" or "" for the half of the day."""
    found = _CLOCK.fullmatch(text)
    if found is None:
        return None
    return tuple(int(part or 0) for part in found.groups()[:3]), (found[4] or "").lower()


def _value(found: re.Match[str]) -> tuple[Fraction, Fraction] | None:
    """The number without its sign, and by how much it may be rounded."""
    part = found.groupdict()
    exact = Fraction(0)
    if part["lone_over"] or part["lone_over1"]:
        over, under = int(part["lone_over"] or part["lone_over1"]), int(part["lone_under"] or part["lone_under1"])
    elif part["mixed"]:
        over, under = int(part["mixed_over"] or part["mixed_over1"]), int(part["mixed_under"] or part["mixed_under1"])
        exact = Fraction(int(part["mixed"]))
    elif part["whole_part"]:
        over, under, exact = int(part["numerator"]), int(part["denominator"]), Fraction(int(part["whole_part"]))
    elif part["first"]:
        over, under = int(part["first"]), int(part["second"])
    else:
        return _decimal(part)
    return None if under == 0 else (exact + Fraction(over, under), Fraction(0))


def _decimal(part: dict[str, str]) -> tuple[Fraction, Fraction] | None:
    whole = re.sub(r"\D", "", part["whole"] or "0")
    decimals = (part["decimals"] or part["only_decimals"] or ".")[1:]
    exponent = int((part["e"] or part["ten"] or "0").strip("{} "))
    divisor = int(part["divisor"] or 1)
    if divisor == 0 or abs(exponent) > _MAX_EXPONENT:
        return None
    value = Fraction(int(whole + decimals), divisor * 10 ** len(decimals)) * Fraction(10) ** exponent
    digits = len((whole + decimals).lstrip("0"))
    if not decimals or digits < _MIN_ROUNDED_DIGITS:
        return value, Fraction(0)
    rounding = Fraction(10) ** (exponent - len(decimals)) / 2
    return value, max(rounding, abs(value) * _FLOAT_NOISE if digits >= _FLOAT_DIGITS else Fraction(0))


def _unit(text: str) -> tuple[str, bool] | None:
    """A unit in one spelling and whether it is a known one; ("", False) for no text, None for what is no unit."""
    text = _SPACES.sub("", text).strip()
    if _DEGREE.fullmatch(text):
        return "degree", True
    if text.startswith("(") and text.endswith(")"):
        text = text[1:-1]
    in_font = _IN_FONT.fullmatch(text)
    if in_font:
        text = in_font[1].strip() + (f"^{in_font[2]}" if in_font[2] else "")
    words = [word for word in re.split(r"[\s~]+|\\[ ,;:]|(/)", text) if word]
    if not words:
        return "", False
    names, are_known = [], True
    for word in ["per" if word == "/" else word for word in words]:
        parts = _UNIT_WORD.fullmatch(word)
        if parts is None or len(words) > 2 * _MAX_UNIT_WORDS:
            return None
        name = _UNITS.get(parts[1]) or (_UNITS.get(parts[1].lower()) if len(parts[1]) > 2 else None)
        if name is None and parts[1] not in _JOINING:
            if not in_font and (len(parts[1]) < 3 or parts[1].lower() in _SYMBOLS) and parts[1].isascii():
                return None
            are_known = False
        names.append((name or parts[1]) + (f"^{parts[2]}" if parts[2] else ""))
    joined = re.sub(r"(?:square|sq) (\w+)", r"\1^2", " ".join(names))
    return re.sub(r"(?:cubic|cu) (\w+)", r"\1^3", joined), are_known
