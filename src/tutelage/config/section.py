"""What is a table of the run file?  Its base class, and what a path, a name of a file or seconds are in any of them."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from tutelage.paths import check_file_name, expanded_path

__all__ = ["MAX_SECONDS", "THIS", "FileName", "OptionalFileName", "OptionalPath", "PathText", "Seconds", "Section"]

# Stands for the key in messages that do not know it; `config.load` puts the key there.
THIS = "this setting"

# More is a typing error, which a library would crash at.
MAX_SECONDS = 365 * 24 * 3600.0


class Section(BaseModel):
    """A table of the run file."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _path(text: str | None) -> str | None:
    return None if text is None else expanded_path(text, THIS)


def _file_name(name: str | None) -> str | None:
    return None if name is None else check_file_name(name, THIS, "first-run")


# What a path or a name of a file is, wherever a run file has one.
PathText = Annotated[str, AfterValidator(_path)]
OptionalPath = Annotated[str | None, AfterValidator(_path)]
FileName = Annotated[str, AfterValidator(_file_name)]
OptionalFileName = Annotated[str | None, AfterValidator(_file_name)]
Seconds = Annotated[float, Field(gt=0, le=MAX_SECONDS)]
