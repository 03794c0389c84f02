"""What a model's folder says about generating: where it stops, and how it would sample by itself.

Only the stop ids matter here. The rest is kept for users of the saved model, as far as it can be saved.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from tutelage.models.reading import read_json, reading

__all__ = ["drop_unsavable", "read_generation_config"]

FILE = "generation_config.json"


def read_generation_config(path: str, revision: str | None = None) -> Any | None:
    """The generation configuration of a directory or hub id; None = there is none.

    Raises:
      ModelError: it cannot be read. `transformers` would go on without it, and so without its stop ids.
    """
    if Path(path).is_dir():
        if not (Path(path) / FILE).is_file():
            return None
        read_json(Path(path) / FILE)
        with reading("generation configuration", path):
            return GenerationConfig.from_pretrained(path)
    try:
        return GenerationConfig.from_pretrained(path, revision=revision or "main")
    except OSError:
        return None


def drop_unsavable(module: Any) -> list[str]:
    """Unset, in a model's configurations, the generation parameters with which `transformers` would not save it.

    Such as a temperature without `do_sample`, and parameters of generation in the model's own configuration. Nothing
    here depends on them: rollouts and evaluations have temperatures of their own.

    Returns:
      their names.
    """
    dropped: list[str] = []
    defaults = GenerationConfig()
    misplaced: dict[str, Any] = getattr(module.config, "_get_generation_parameters", dict)()
    for name in misplaced:
        setattr(module.config, name, getattr(defaults, name, None))
        dropped.append(name)
    config = getattr(module, "generation_config", None)
    while config is not None:
        try:
            config.validate(strict=True)
        except ValueError as problem:
            named = [
                name for name in re.findall(r"`(\w+)`:", str(problem)) if name not in dropped and hasattr(config, name)
            ]
            if not named:
                break
            for name in named:
                setattr(config, name, getattr(defaults, name, None))
            dropped += named
        else:
            break
    return list(dict.fromkeys(dropped))
