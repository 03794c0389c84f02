"""How do tokens get produced?  The paired engine samples from any policy; scoring lets a teacher read what exists."""

from tutelage.rollout.draft_length import draft_length_named
from tutelage.rollout.paired import PairedEngine
from tutelage.rollout.scoring import score
from tutelage.rollout.sharing import Spread, answers_to_share, whole_share, without_hidden
from tutelage.rollout.streams import derive_seed, uniforms

__all__ = [
    "PairedEngine",
    "Spread",
    "answers_to_share",
    "derive_seed",
    "draft_length_named",
    "score",
    "uniforms",
    "whole_share",
    "without_hidden",
]
