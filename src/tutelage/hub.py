"""Is the Hugging Face hub there?  Asked once and within seconds, before a library waits for it file by file. A model is
put there, if somebody asks for that.

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
from typing import Any, Literal

from tutelage.errors import ConfigurationError, DataError, ModelError, OutputExistsError, ServerError, in_short

__all__ = ["check_hub", "check_upload", "unreachable", "upload_model"]

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


def check_upload(name: str) -> None:
    """Refuse a model that could not be put on the hub under this name, before anything is computed for it.

    Raises:
      ConfigurationError: no id of a model, no network, nobody is logged in, or the hub does not know the login.
      OutputExistsError: the hub has a model of that name with files in it.
    """
    from huggingface_hub import HfApi, is_offline_mode
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
        is_id = name.count("/") == 1
    except HFValidationError:
        is_id = False
    if not is_id:
        raise ConfigurationError(f"{name!r} is no name on the hub; expected OWNER/NAME. Give such a one.")
    if (reason := unreachable()) is not None or is_offline_mode():
        raise ConfigurationError(
            f"{name} cannot be put on the hub, which is out of reach ({reason or 'HF_HUB_OFFLINE is set'}). Export "
            "without it, and upload the folder later: hf upload"
        )
    client = HfApi()
    try:
        client.whoami()
    except Exception as problem:  # no token, or one that is refused: of whichever HTTP library the client uses
        raise ConfigurationError(
            f"the hub does not know who uploads {name} ({in_short(problem)}). Log in with `hf auth login`, or set "
            "HF_TOKEN."
        ) from problem
    _check_empty(client, name)


def upload_model(folder: Path, name: str, *, private: bool) -> str:
    """Put a model directory on the hub under a new name; returns its address there.

    Raises:
      OutputExistsError: the hub has a model of that name with files in it.
      ServerError: the hub refuses it, or is gone; the folder stays as it is.
    """
    from huggingface_hub import HfApi

    client = HfApi()
    try:
        _check_empty(client, name)
        address = client.create_repo(name, private=private, exist_ok=True)
        client.upload_folder(repo_id=name, folder_path=folder, commit_message="A student trained by Tutelage")
    except OutputExistsError:
        raise
    except Exception as problem:  # of whichever HTTP library the client uses
        raise ServerError(
            f"{name} was not uploaded: {in_short(problem)}. The model is in {folder}; once the cause is gone: "
            f"hf upload {name} {folder}"
        ) from problem
    return str(address)


def _check_empty(client: Any, name: str) -> None:
    """Refuse a model on the hub that has files; one that was only created is taken."""
    if client.repo_exists(name) and set(client.list_repo_files(name)) - {".gitattributes"}:
        raise OutputExistsError(f"the hub has a model {name} already; nothing is overwritten. Choose another name.")
