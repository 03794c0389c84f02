"""What may a path or the name of a file be?  As a person writes it, on a command line or in a run file.

Both use this module, so that `~` means the same everywhere and an impossible path is refused before anything is
computed.
"""

from __future__ import annotations

import os

from tutelage.errors import ConfigurationError, printable

__all__ = ["check_file_name", "expanded_path"]

MAX_PATH_BYTES = 4096
MAX_NAME_BYTES = 200  # file systems hold 255, and we add endings and leading dots


def expanded_path(text: str, key: str) -> str:
    """A path with `~` and `~user` replaced by the home folder; a hub id stays as it is.

    Args:
      key: of the configuration, or the option, that the path is from.
    Raises:
      ConfigurationError: it is empty, has control characters, is too long, or names a user that this
        machine does not have.
    """
    if not text.strip():
        raise ConfigurationError(f"{key} is empty; expected a path. Write one, or leave {key} out.")
    if printable(text) != text or "\n" in text or "\t" in text:
        raise ConfigurationError(
            f"{key} is {text[:200]!r}; a path has no line breaks, no control characters and no broken Unicode. Rename "
            "the file, or correct the path."
        )
    if len(text.encode()) > MAX_PATH_BYTES:
        raise ConfigurationError(
            f"{key} is {text[:40]!r}... with {len(text.encode())} bytes; a path has {MAX_PATH_BYTES} at most."
        )
    path = os.path.expanduser(text)  # noqa: PTH111  # keeps './', a trailing '/' and hub ids as they are written
    if path.startswith("~"):
        user = path.split("/")[0]
        raise ConfigurationError(
            f"{key} is {text!r}; {user} stands for the home folder of a user, and this machine knows none of that "
            f"name. Write the folder out, or ./{path} for a folder that is called so."
        )
    return path


def check_file_name(name: str, key: str, example: str) -> str:
    """`name` itself, if a file or folder can be called so wherever we put it.

    Raises:
      ConfigurationError: it is empty, leads elsewhere (`../x`), is hidden, too long, or has control characters.
    """
    is_plain = name.strip() and not name.startswith(".") and "/" not in name and "\\" not in name
    if not is_plain or printable(name) != name or "\n" in name or "\t" in name:
        raise ConfigurationError(
            f"{key} is {name[:200]!r}, under which no file can be kept; expected a plain name without slashes, control "
            f"characters and a dot in front. Use a name such as {example!r}."
        )
    if len(name.encode()) > MAX_NAME_BYTES:
        raise ConfigurationError(
            f"{key} is {name[:40]!r}... with {len(name.encode())} bytes; a file's name has {MAX_NAME_BYTES} at most. "
            "Shorten it."
        )
    return name
