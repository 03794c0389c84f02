"""What several functions take: a run file with overrides, numbers within bounds, and outputs that must be new.

Heavy imports wait until they are needed: commands that need no model check their outputs here, too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tutelage.errors import ConfigurationError, OutputExistsError

__all__ = [
    "MAX_COUNT",
    "MAX_NEW_TOKENS",
    "MAX_PROCESSES",
    "MAX_SAMPLES",
    "MAX_SEED",
    "MAX_SEEDS",
    "MAX_WORKERS",
    "Overrides",
    "RunFile",
    "check_numbers",
    "check_output_file",
    "check_output_folder",
    "options_of",
    "threads",
]

RunFile = str | Path | Mapping[str, Any]
"""A TOML file, or the table that such a file holds."""
Overrides = Mapping[str, Any] | Sequence[str]
"""{"key.path": value}, or texts "key.path=value" as the command line takes them."""

# As the run file has them (`config.schema`), which costs an import of torch.
MAX_SEED, MAX_SAMPLES, MAX_NEW_TOKENS, MAX_COUNT = 2**63 - 1, 2**16, 2**24, 2**31 - 1
MAX_SEEDS, MAX_WORKERS, MAX_PROCESSES = 10_000, 1024, 65_536

# Name of an argument -> the smallest and the largest value that makes sense.
BOUNDS = {
    "samples": (1, MAX_SAMPLES),
    "temperature": (0, math.inf),
    "max_new_tokens": (1, MAX_NEW_TOKENS),
    "max_prompt_tokens": (1, MAX_COUNT),
    "limit": (1, math.inf),
    "rows": (1, math.inf),
    "seed": (0, MAX_SEED),
    "step": (0, math.inf),
    "processes": (1, MAX_PROCESSES),
    "seeds": (1, MAX_SEEDS),
    "first_seed": (0, MAX_SEED),
    "early_steps": (1, MAX_COUNT),
    "workers": (1, MAX_WORKERS),
    "shard": (1, math.inf),
}


def check_numbers(numbers: Mapping[str, Any]) -> None:
    """Refuse an argument that is no number, or beyond its bounds; None and names without bounds pass.

    Raises:
      ConfigurationError: names the argument.
    """
    for name, value in numbers.items():
        if name not in BOUNDS or value is None:
            continue
        low, high = BOUNDS[name]
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not low <= value <= high
            or value == math.inf
        ):
            most = "" if high == math.inf else f" and at most {high}"
            raise ConfigurationError(
                f"{name} is {value!r}; expected a number of at least {low}{most}. Leave it out for the default."
            )


def options_of(defaults: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults with what was asked for.

    Raises:
      ConfigurationError: there is no such option, or its number is beyond its bounds.
    """
    from tutelage.config.load import unknown_key

    for name in asked:
        if name not in defaults:
            raise unknown_key(name, defaults)
    check_numbers(asked)
    return {**defaults, **asked}


def check_output_file(output: Path) -> None:
    """Refuse a file that exists already, or that could not be written."""
    from tutelage.config import check_writable

    if output.exists():
        raise OutputExistsError(f"{output} already exists; nothing is overwritten. Choose another file.")
    check_writable(output)


def check_output_folder(output: Path) -> None:
    """Refuse a folder that exists already, or that could not be written."""
    from tutelage.config import check_writable

    if output.exists():
        raise OutputExistsError(f"the output folder {output} already exists; nothing is overwritten. Choose another.")
    check_writable(output)


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """PyTorch's threads inside, and as they were afterwards; None leaves them as they are."""
    import torch

    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
