"""Values as a run file has them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

__all__ = ["toml_value"]


def toml_value(value: Any) -> str:
    """One value in TOML, tables in line."""
    if isinstance(value, Mapping):
        return (
            "{ " + ", ".join(f"{name} = {toml_value(each)}" for name, each in value.items()) + " }" if value else "{}"
        )
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml_value(each) for each in value) + "]"
    return json.dumps(value) if isinstance(value, str | bool) else str(value)
