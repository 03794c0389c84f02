"""How is a request decoded?  Rounds of drafts and judgements, with randomness that belongs to a token."""

from tutelage.rollout.decoding.draft_length import (
    DEFAULT_DRAFT_LENGTH,
    MAX_DRAFT_LENGTH,
    DraftLengths,
    draft_length_named,
)
from tutelage.rollout.decoding.rounds import Decoding, DecodingSettings, slots_of
from tutelage.rollout.decoding.streams import derive_seed, uniforms

__all__ = [
    "DEFAULT_DRAFT_LENGTH",
    "MAX_DRAFT_LENGTH",
    "Decoding",
    "DecodingSettings",
    "DraftLengths",
    "derive_seed",
    "draft_length_named",
    "slots_of",
    "uniforms",
]
