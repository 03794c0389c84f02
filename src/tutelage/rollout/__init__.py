"""How do tokens get produced?  Engines make answers under a policy, samplers draw them elsewhere, and scorers let
models read answers that exist.
"""

from tutelage.rollout.decoding import DEFAULT_DRAFT_LENGTH, derive_seed, draft_length_named, uniforms
from tutelage.rollout.engines import EditingEngine, Engine, Engines, HostedEngine, OfflineEngine, PairedEngine
from tutelage.rollout.limits import DEFAULT_SUPPORT_SIZE, Limits
from tutelage.rollout.request import Request
from tutelage.rollout.samplers import SAMPLERS, Capacity, HostedSettings, Sampler
from tutelage.rollout.score_cache import ScoreCache
from tutelage.rollout.scorers import LocalScorer, ReferenceScorer, RoutedScorer, Scorer, ServedScorer, TopScorer
from tutelage.rollout.servers import DEFAULT_RETRIES, DEFAULT_TIMEOUT_SECONDS, ServedModel, Server, address_of
from tutelage.rollout.sharing import MapShards, answers_to_share, single_process, without_hidden

__all__ = [
    "DEFAULT_DRAFT_LENGTH",
    "DEFAULT_RETRIES",
    "DEFAULT_SUPPORT_SIZE",
    "DEFAULT_TIMEOUT_SECONDS",
    "SAMPLERS",
    "RoutedScorer",
    "Capacity",
    "EditingEngine",
    "Engine",
    "Engines",
    "HostedEngine",
    "HostedSettings",
    "Limits",
    "LocalScorer",
    "MapShards",
    "OfflineEngine",
    "PairedEngine",
    "ReferenceScorer",
    "Request",
    "Sampler",
    "ScoreCache",
    "Scorer",
    "ServedModel",
    "ServedScorer",
    "Server",
    "TopScorer",
    "address_of",
    "answers_to_share",
    "derive_seed",
    "draft_length_named",
    "single_process",
    "uniforms",
    "without_hidden",
]
