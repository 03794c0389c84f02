"""How much memory does a forward take that nothing is learned from?"""

from __future__ import annotations

from typing import Any

__all__ = ["reading_numbers"]


def reading_numbers(config: Any) -> int:
    """Numbers of one token that are alive at once in one layer, roughly; layers before it have left nothing.

    Args:
      config: of the text model, as transformers has it.
    """
    width = int(config.hidden_size)
    return 10 * width + 4 * int(getattr(config, "intermediate_size", None) or 4 * width)
