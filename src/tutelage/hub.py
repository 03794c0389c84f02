"""Is the Hugging Face hub there?  Asked once and within seconds, before a library waits for it file by file.

Without a network the libraries send for every file again and again, with pauses of 1, 2, 4, 8 and 8 seconds, until most
of a minute is gone. Here one small request finds out. If it fails, the cache is used as with HF_HUB_OFFLINE, and
what the cache does not hold is refused.
"""

from __future__ import annotations

import os
import sys
import warnings
from functools import cache
from pathlib import Path
from threading import Thread
from typing import Literal

from tutelage.errors import DataError, ModelError, in_short

__all__ = ["check_hub", "unreachable"]

MAX_SECONDS = 8.0
Kind = Literal["model", "dataset"]
KEYS = {"model": "a model directory", "dataset": "a .jsonl, .json or .parquet file"}


def check_hub(name: str, kind: Kind) -> None:
    """Refuse an id that no hub can have, or that the hub cannot give now and the cache does not hold.

    Raises:
      ModelError, DataError: by `kind`.
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    error = ModelError if kind == "model" else DataError
    try:
        validate_repo_id(name)
    except HFValidationError:
        shown = ascii(name[:100])
        raise error(
            f"{shown} is nothing that exists here, and cannot be a hub id: these are NAME or OWNER/NAME, of at most 96 "
            f"letters, digits and -_. characters. Give {KEYS[kind]} or such an id."
        ) from None
    reason = unreachable()
    if reason is None:
        return
    if not _is_cached(name, kind):
        raise error(
            f"{name!r} is nothing that exists here, so it was taken for a hub id, and the hub is out of reach "
            f"({reason}). Give {KEYS[kind]}; or fetch it once where there is a network, and copy the cache (HF_HOME); "
            "or set HF_ENDPOINT to a hub that can be reached."
        )
    warnings.warn(f"the hub is out of reach ({reason}); {name!r} is taken from the cache as it is there", stacklevel=2)


@cache
def unreachable() -> str | None:
    """Why the hub cannot be asked; None where it can, or where the user wants no network (HF_HUB_OFFLINE).

    From the first failure on, this process and those that it starts are offline, as if HF_HUB_OFFLINE were set.
    """
    from huggingface_hub import constants, get_session, is_offline_mode

    if is_offline_mode():
        return None
    found: list[str | None] = []

    def ask() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=MAX_SECONDS)  # any answer will do
            found.append(None)
        except Exception as problem:  # of whichever HTTP library the hub's client uses
            found.append(in_short(problem))

    # A thread, since no timeout holds for the look-up of a name.
    thread = Thread(target=ask, daemon=True)
    thread.start()
    thread.join(MAX_SECONDS)
    reason = found[0] if found else f"no answer within {MAX_SECONDS:g} seconds"
    if reason is None:
        return None
    os.environ["HF_HUB_OFFLINE"] = "1"
    constants.HF_HUB_OFFLINE = True
    if "datasets" in sys.modules:
        sys.modules["datasets"].config.HF_HUB_OFFLINE = True
    return f"{constants.ENDPOINT}: {reason}"


def _is_cached(name: str, kind: Kind) -> bool:
    """Whether the cache holds something of it; whether that is enough is for the library to say."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / "--".join([f"{kind}s", *name.split("/")])
    if any((folder / "snapshots").glob("*/*")):
        return True
    # Data sets are kept as tables too, under names with other capitals and underscores.
    tables = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets")
    plain = {entry.name.replace("_", "").lower() for entry in tables.glob("*")} if kind == "dataset" else set()
    return name.replace("/", "").replace("_", "").lower() in plain
