"""What a check found: a verdict, one line of text, and what to do about it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

__all__ = ["Finding", "Verdict"]


class Verdict(StrEnum):
    """How a check ended, from harmless to not worth starting."""

    ok = "ok"
    skipped = "skipped"
    warning = "warning"
    error = "error"


@dataclass(frozen=True)
class Finding:
    """One line of the examination.

    Fields:
      verdict: error = the run cannot work or teaches nothing; warning = look at it; skipped = it could not be checked.
      text: what was found, in one sentence.
      remedy: what to do about it; empty if nothing is to be done, or if the text contains it (refusals).
      details: further lines for a person to look at, such as a rendered prompt.
      check: name of the check, as in the tables `CHEAP` and `COSTLY`.
    """

    verdict: Verdict
    text: str
    remedy: str = ""
    details: tuple[str, ...] = ()
    check: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The fields as JSON has them."""
        return {**asdict(self), "verdict": str(self.verdict), "details": list(self.details)}
