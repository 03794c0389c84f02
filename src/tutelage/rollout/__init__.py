"""How do tokens get produced?  The paired engine samples from any policy, and lets vLLM take over where the student is
alone; scoring lets a teacher read what exists.
"""

from tutelage.rollout.draft_length import draft_length_named
from tutelage.rollout.offline import OfflineAnswers
from tutelage.rollout.paired import PairedEngine
from tutelage.rollout.score_cache import ScoreCache
from tutelage.rollout.scoring import score, score_top
from tutelage.rollout.served_teacher import ServedTeacher
from tutelage.rollout.server import Server, address_of
from tutelage.rollout.sharing import MapShards, answers_to_share, single_process, without_hidden
from tutelage.rollout.streams import derive_seed, uniforms
from tutelage.rollout.vllm_answers import ServedModel
from tutelage.rollout.vllm_engine import VLLMEngine, VLLMSettings
from tutelage.rollout.vllm_samplers import LocalVLLM, ServedVLLM

__all__ = [
    "LocalVLLM",
    "MapShards",
    "OfflineAnswers",
    "PairedEngine",
    "ScoreCache",
    "ServedModel",
    "ServedTeacher",
    "ServedVLLM",
    "Server",
    "VLLMEngine",
    "VLLMSettings",
    "address_of",
    "answers_to_share",
    "derive_seed",
    "draft_length_named",
    "score",
    "score_top",
    "single_process",
    "uniforms",
    "without_hidden",
]
