"""Functions that a run file names as rewards: one that is fine on any text, and some that are not."""

from __future__ import annotations

import os
import time
from typing import Any


def vowels(prompt: str, response: str, answer: str | None) -> float:
    """Share of vowels."""
    return sum(letter in "aeiou" for letter in response) / max(len(response), 1)


def echo(prompt: str, response: str, answer: str | None) -> float:
    """1 if prompt and answer are those of problem 1."""
    return prompt == "What is 1?" and answer == "1"


def knows_no_answer(prompt: str, response: str, answer: str | None) -> bool:
    """Whether there is none."""
    return answer is None


def odd(prompt: str, response: str, answer: str | None) -> Any:
    """Does what the response says."""
    if response == "raise":
        raise KeyError("no such rule")
    if response == "hang":
        time.sleep(60)
    if response == "end":
        os._exit(3)
    return {"list": [1.0, 2.0], "text": "0.5", "none": None, "nan": float("nan")}.get(response, 0.25)
