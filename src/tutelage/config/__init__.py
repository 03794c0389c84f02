"""Which run is this?  TOML to parts, with everything refused that can be refused before any compute."""

from tutelage.config.build import (
    build_engine,
    build_phases,
    build_recipe,
    build_run,
    check_consistency,
    decoder_of,
    load_tokenizers,
    make_verifier,
    policy_at,
)
from tutelage.config.load import load_config, read_run_file, resolve_config, settings_of, to_toml
from tutelage.config.models import load_meta_model, load_route_tokenizers, other_models
from tutelage.config.parts import part_from
from tutelage.config.prompts import (
    Prompts,
    build_evaluation_sets,
    check_lengths,
    check_prompt_lengths,
    load_evaluation_problems,
    read_prompts,
)
from tutelage.config.resuming import check_writable
from tutelage.config.schema import DataConfig, EvaluationSetConfig, ModelConfig, PhaseConfig, RunConfig
from tutelage.config.scores import offline_answers
from tutelage.config.serving import (
    check_student_server,
    check_teacher_server,
    make_served_student,
    make_served_teacher,
)
from tutelage.config.source import items_of

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
    "check_student_server",
    "check_teacher_server",
    "decoder_of",
    "offline_answers",
    "items_of",
    "load_config",
    "load_evaluation_problems",
    "load_meta_model",
    "load_route_tokenizers",
    "load_tokenizers",
    "make_served_student",
    "make_served_teacher",
    "make_verifier",
    "policy_at",
    "other_models",
    "part_from",
    "read_prompts",
    "read_run_file",
    "check_consistency",
    "check_lengths",
    "check_prompt_lengths",
    "check_writable",
    "resolve_config",
    "settings_of",
    "to_toml",
]
