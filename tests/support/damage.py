"""Damage from a seed: what goes wrong with files and values that people and machines hand over.

A test asks for damage number n of a kind and always gets the same. Nothing here knows what the library does with it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["NASTY", "damage_bytes", "damage_json", "damage_value", "replace_file"]

# Values that no reader expects where it expects something.
NASTY: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1.5,
    10**12,
    10**30,
    -(2**63) - 1,
    float("nan"),
    float("inf"),
    1e-320,
    "",
    " ",
    "nan",
    "1e400",
    "\x00",
    "a\nb",
    "\x1b[31mred\x1b[0m",
    "[/bold]",
    "[red]",
    "\u202egnp.exe",
    "../../elsewhere",
    "~/elsewhere",
    "ü€😀",
    "x" * 5000,
    [],
    {},
    [[]],
    [None],
    {"": None},
    {"a": {"b": [1, {"c": -1}]}},
)


def damage_value(random_numbers: random.Random) -> Any:
    """One of `NASTY`."""
    return random_numbers.choice(NASTY)


def damage_bytes(content: bytes, random_numbers: random.Random) -> bytes:
    """The content of a file after a bad disk, a bad transfer, or another program."""
    place = random_numbers.randrange(len(content)) if content else 0

    def with_noise() -> bytes:
        damaged = bytearray(content)
        for _ in range(random_numbers.randint(1, 8)):
            damaged[random_numbers.randrange(len(damaged))] = random_numbers.randrange(256)
        return bytes(damaged)

    ways: list[Callable[[], bytes]] = [
        lambda: b"",
        lambda: content[:place],
        lambda: content[place:],
        with_noise,
        lambda: content[:place] + bytes(64) + content[place:],
        lambda: content + content[: place + 1],
        lambda: b"\xef\xbb\xbf" + content,
        lambda: content.decode("latin-1").encode("utf-16"),
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        lambda: b"<!DOCTYPE html><html>404</html>",
        lambda: b"[" * 100_000,
        lambda: random_numbers.randbytes(200),
    ]
    return random_numbers.choice(ways)()


def damage_json(content: Any, random_numbers: random.Random) -> Any:
    """The same JSON with one of its values gone, replaced, or wrapped."""
    damaged = json.loads(json.dumps(content))
    holder, key = _some_place(damaged, random_numbers)
    way = random_numbers.choice(["drop", "replace", "replace", "replace", "wrap", "as text", "another's key"])
    if holder is None:
        return damage_value(random_numbers)
    if way == "drop":
        del holder[key]
    elif way == "wrap":
        holder[key] = random_numbers.choice([[holder[key]], {"value": holder[key]}])
    elif way == "as text":
        holder[key] = str(holder[key])
    elif way == "another's key" and isinstance(holder, dict):
        holder[random_numbers.choice(sorted(holder))] = holder[key]
    else:
        holder[key] = damage_value(random_numbers)
    return damaged


def _some_place(content: Any, random_numbers: random.Random) -> tuple[Any, Any]:
    """A container and one of its keys; each level is left for the next one half of the time."""
    holder, key = None, None
    while isinstance(content, dict | list) and content:
        if holder is not None and random_numbers.random() < 0.5:
            break
        holder = content
        key = (
            random_numbers.choice(sorted(holder)) if isinstance(holder, dict) else random_numbers.randrange(len(holder))
        )
        content = holder[key]
    return holder, key


def replace_file(path: Path, content: bytes) -> None:
    """Write new content without touching a file that has the same inode elsewhere."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)
