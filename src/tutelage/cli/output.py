"""What a command prints for a program: with --json one document on standard output, and nothing else there.

The lines and tables for a person are then left out, and what a library prints goes to standard error. Errors and
warnings are there, too, each a JSON object on one line.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Annotated, Any, TextIO

import typer

from tutelage.files import json_text

__all__ = ["AsJson", "document_alone", "is_json_asked", "print_document", "print_json_line"]

OPTION = "--json"
AsJson = Annotated[bool, typer.Option(OPTION, help="Print one JSON document, and nothing else.")]

_streams: list[TextIO] = []  # where the document goes, inside `document_alone`


def is_json_asked(words: Sequence[str]) -> bool:
    """Whether a command line asks for JSON, also one that cannot be parsed."""
    return OPTION in words


@contextmanager
def document_alone() -> Iterator[None]:
    """Standard output is for the document inside; what others print there goes to standard error."""
    _streams.append(sys.stdout)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _streams.pop()


def print_document(content: Any) -> None:
    """The document of a command: plain values, `null` where a number is not finite."""
    print(json_text(content, indent=2), file=_streams[-1] if _streams else sys.stdout, flush=True)


def print_json_line(content: dict[str, Any]) -> None:
    """An error or a warning of a command whose answer is JSON."""
    print(json_text(content), file=sys.stderr, flush=True)
