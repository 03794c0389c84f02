"""Verifiers of tests, as a run file names them."""

from __future__ import annotations


def has_an_odd_length(response: str, answer: str) -> bool:
    """Right for some answers of any model, so that rewards differ within a group."""
    return len(response) % 2 == 1
