"""Which run is this?  TOML to parts, with everything refused that can be refused before any compute."""

from tutelage.config.build import (
    Prompts,
    build_engine,
    build_evaluation_sets,
    build_phases,
    build_recipe,
    build_run,
    decoder_of,
    load_evaluation_problems,
    load_tokenizers,
    make_verifier,
    policy_at,
    read_prompts,
    refuse_contradictions,
    refuse_overlong,
    refuse_overlong_prompts,
    refuse_unwritable,
)
from tutelage.config.load import flattened, load_config, read_run_file, resolve_config, to_toml
from tutelage.config.models import load_route_tokenizers, other_models, reference_of
from tutelage.config.parts import part_from
from tutelage.config.schema import DataConfig, EvaluationSetConfig, ModelConfig, PhaseConfig, RunConfig
from tutelage.config.serving import outline_of_teacher

__all__ = [
    "DataConfig",
    "EvaluationSetConfig",
    "ModelConfig",
    "PhaseConfig",
    "Prompts",
    "RunConfig",
    "build_engine",
    "build_evaluation_sets",
    "build_phases",
    "build_recipe",
    "build_run",
    "decoder_of",
    "flattened",
    "load_config",
    "load_evaluation_problems",
    "load_route_tokenizers",
    "load_tokenizers",
    "make_verifier",
    "policy_at",
    "other_models",
    "outline_of_teacher",
    "part_from",
    "read_prompts",
    "read_run_file",
    "reference_of",
    "refuse_contradictions",
    "refuse_overlong",
    "refuse_overlong_prompts",
    "refuse_unwritable",
    "resolve_config",
    "to_toml",
]
