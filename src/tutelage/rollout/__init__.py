"""How do tokens get produced?  The paired engine samples from any policy, and lets vLLM take over where the student is
alone; scoring lets a teacher read what exists.
"""

from tutelage.rollout.draft_length import draft_length_named
from tutelage.rollout.paired import PairedEngine
from tutelage.rollout.scoring import score
from tutelage.rollout.served_teacher import ServedTeacher
from tutelage.rollout.server import Server
from tutelage.rollout.streams import derive_seed, uniforms
from tutelage.rollout.vllm_engine import VLLMEngine, VLLMSettings
from tutelage.rollout.vllm_samplers import LocalVLLM, ServedVLLM

__all__ = [
    "LocalVLLM",
    "PairedEngine",
    "ServedTeacher",
    "ServedVLLM",
    "Server",
    "VLLMEngine",
    "VLLMSettings",
    "derive_seed",
    "draft_length_named",
    "score",
    "uniforms",
]
