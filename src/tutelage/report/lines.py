"""JSON-lines files, an object at a time: what a run writes may be long, torn at its end, damaged, or still growing."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from tutelage.errors import DataError, in_short

__all__ = [
    "MAX_LINE_BYTES",
    "FollowedFile",
    "Line",
    "is_torn",
    "lines_of",
    "object_in",
    "read_jsonl",
    "sound_objects",
    "strict_objects",
]

MAX_LINE_BYTES = 16_000_000  # a logged rollout of 100,000 tokens has a tenth; memory is bounded by this
SHOWN_BYTES = 40

Line = tuple[int, int, bytes]  # its number from 1, where it starts, its bytes with the line end


def lines_of(path: Path) -> Iterator[Line]:
    """The lines that are not empty; of one that is too long only a beginning, without a line end.

    Raises:
      DataError: there is no such file.
    """
    if not path.is_file():
        raise DataError(
            f"{path} does not exist; expected a JSON-lines file. Point to the folder of a run that has begun."
        )
    with path.open("rb") as file:
        number = start = 0
        while line := file.readline(MAX_LINE_BYTES):
            number += 1
            if not line.isspace():
                yield number, start, line
            start += len(line)
            if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
                start += _pass_over_line(file)


def object_in(line: bytes) -> dict[str, Any]:
    """The object that a line holds.

    Raises:
      ValueError: it holds none; the message says what it is.
    """
    if len(line) == MAX_LINE_BYTES:
        raise ValueError(f"is longer than {MAX_LINE_BYTES // 1_000_000} MB")
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:  # broken JSON, bytes that are not UTF-8, nested too deep
        raise ValueError(f"is not JSON ({in_short(error)})") from error
    if not isinstance(record, dict):
        raise ValueError(f"is {line.strip()[:SHOWN_BYTES]!r}; expected a JSON object")
    return record


def strict_objects(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file; a last line torn by a killed process is left out.

    Raises:
      DataError: no such file, no whole line in it, or a line elsewhere that is no JSON object.
    """
    is_empty = True
    for number, _, line in lines_of(path):
        try:
            record = object_in(line)
        except ValueError as problem:
            if is_torn(line):
                break
            raise DataError(f"{path}, line {number} {problem}. Fix or delete that line.") from problem
        is_empty = False
        yield record
    if is_empty:
        raise DataError(
            f"{path} has no complete line; expected one JSON object per line. Let the run finish a step first."
        )


def sound_objects(path: Path, left_out: list[str]) -> Iterator[dict[str, Any]]:
    """The objects of a file that a report can do without: lines that are none are passed over.

    Args:
      left_out: gets a sentence about those lines.
    """
    num_broken, first = 0, ""
    for number, _, line in lines_of(path):
        try:
            yield object_in(line)
        except ValueError as problem:
            if not is_torn(line):
                num_broken, first = num_broken + 1, first or f"line {number} {problem}"
    if num_broken:
        left_out.append(f"{path}: {num_broken} line{'s' * (num_broken > 1)} cannot be read; {first}.")


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """`strict_objects` as a list, for files that are known to be short."""
    return list(strict_objects(path))


@dataclass
class FollowedFile:
    """A JSON-lines file that grows while it is read: every look gives what was added since the last one.

    Fields:
      path: need not exist yet.
    """

    path: Path
    _place: int = 0
    _known: tuple[int, int] = field(default=(0, 0))

    def news(self) -> tuple[bool, list[dict[str, Any]]]:
        """Whether the file was written anew, as by a run that is resumed, and the objects since then or the last look.

        Lines that are no objects are passed over; one without its line end waits for the next look.
        """
        try:
            with self.path.open("rb") as file:
                return self._is_new(file), list(self._added(file))
        except FileNotFoundError:
            return False, []

    def _is_new(self, file: BinaryIO) -> bool:
        status = os.fstat(file.fileno())
        known, self._known = self._known, (status.st_dev, status.st_ino)
        if known == self._known and status.st_size >= self._place:
            return False
        self._place = 0
        return True

    def _added(self, file: BinaryIO) -> Iterator[dict[str, Any]]:
        file.seek(self._place)
        for line in file:
            if not line.endswith(b"\n"):
                return
            self._place += len(line)
            try:
                yield object_in(line)
            except ValueError:
                continue


def _pass_over_line(file: BinaryIO) -> int:
    passed = 0
    while part := file.readline(MAX_LINE_BYTES):
        passed += len(part)
        if part.endswith(b"\n"):
            break
    return passed


def is_torn(line: bytes) -> bool:
    """It has no line end: the last line, which was being written when the process died."""
    return not line.endswith(b"\n") and len(line) < MAX_LINE_BYTES
