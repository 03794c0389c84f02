"""How do tokens get produced?  The paired engine samples from any policy; scoring lets a teacher read what exists."""

from tutelage.rollout.draft_length import draft_length_named
from tutelage.rollout.given import GivenAnswers
from tutelage.rollout.paired import PairedEngine
from tutelage.rollout.score_cache import ScoreCache
from tutelage.rollout.scoring import score, score_top
from tutelage.rollout.sharing import Spread, answers_to_share, whole_share, without_hidden
from tutelage.rollout.streams import derive_seed, uniforms

__all__ = [
    "GivenAnswers",
    "PairedEngine",
    "ScoreCache",
    "Spread",
    "answers_to_share",
    "derive_seed",
    "draft_length_named",
    "score",
    "score_top",
    "uniforms",
    "whole_share",
    "without_hidden",
]
