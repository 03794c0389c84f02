"""How long may a text be?  The context that a model was made for, and the length up to which its rotary factors stay
the same; both are read from its configuration alone.

Some models turn keys by other factors once a text is longer than a number of tokens ("longrope" of Phi-3, Phi-3.5 and
Phi-4-mini). Keys that were cached before that length keep the old factors, but a later forward over the whole text
turns all of them by the new ones. The distribution that drew an answer is then not the one that scores it, and one
long row of a batch changes all others. So the length of the switch counts as the context length of such a model.

Models with the same factors on either side do not switch. "dynamic" factors grow with texts beyond the context, which
is never exceeded here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["ContextLength", "context_length_in"]

# transformers calls both the same today; folders with code of their own may still say "su".
SWITCHING_TYPES = ("longrope", "su")


class ContextLength(int):
    """Most tokens of a prompt and its answer together.

    Fields:
      made_for: of the model; a server, which holds one set of rotary factors at every length, reads as many.
      remark: what a message that names this number adds, where the context alone does not explain it.
    """

    made_for: int | None
    remark: str = ""

    def __new__(cls, length: int, made_for: int | None = None) -> ContextLength:
        made = super().__new__(cls, length)
        made.made_for = made_for
        return made


def context_length_in(config: Any) -> ContextLength | None:
    """The context length of a text configuration; None if it does not say."""
    longest = getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None)
    switch = min(_switches(config), default=None)
    if switch is None or (longest and switch >= longest):
        return ContextLength(longest, longest) if longest else None
    length = ContextLength(switch, longest)
    length.remark = (
        f" (its rotary factors change beyond {switch} tokens, so a longer text would be scored with other factors than "
        "it was written with; to go beyond, copy the model and set short_factor to long_factor in its config.json, "
        "which holds one set at every length)"
    )
    return length


def _switches(config: Any) -> Iterator[int]:
    """Lengths beyond which some layers have other rotary factors."""
    for rope in _rotary_parameters(config):
        if rope.get("rope_type", rope.get("type")) not in SWITCHING_TYPES:
            continue
        if rope.get("short_factor") == rope.get("long_factor"):
            continue
        original = rope.get("original_max_position_embeddings") or getattr(
            config, "original_max_position_embeddings", None
        )
        if original:
            yield int(original)


def _rotary_parameters(config: Any) -> Iterator[Mapping[str, Any]]:
    """The parameters of all layers, or those of each type of layers."""
    parameters = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    yield parameters
    yield from (value for value in parameters.values() if isinstance(value, Mapping))
