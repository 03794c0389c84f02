"""Which run is this?  TOML to parts, with everything refused that can be refused before any compute."""

from tutelage.config.assembly import RunAssembly
from tutelage.config.build import build_run
from tutelage.config.consistency import check_runtime
from tutelage.config.evaluation import EvaluationAssembly, build_evaluation_sets, load_evaluation_problems
from tutelage.config.load import load_config, read_run_file, resolve_config, settings_of, to_toml
from tutelage.config.model_sections import ModelConfig
from tutelage.config.parts import part_from
from tutelage.config.prompts import check_prompt_lengths, read_prompts
from tutelage.config.recipes import build_phases, build_recipe
from tutelage.config.resuming import check_writable
from tutelage.config.rewards import RatingPlan, rating_plan
from tutelage.config.schema import (
    DataConfig,
    EvaluationConfig,
    EvaluationSetConfig,
    PhaseConfig,
    RunConfig,
)
from tutelage.config.serving import (
    check_sampler,
    check_teacher_servers,
    make_sampler,
    make_served_scorers,
)
from tutelage.config.source import grid_texts, items_of, override_texts
from tutelage.config.verification import make_verifier
from tutelage.config.verifying import CheckpointVerdict, verify_run

__all__ = [
    "CheckpointVerdict",
    "DataConfig",
    "EvaluationAssembly",
    "EvaluationConfig",
    "EvaluationSetConfig",
    "ModelConfig",
    "PhaseConfig",
    "RatingPlan",
    "RunAssembly",
    "RunConfig",
    "build_evaluation_sets",
    "build_phases",
    "build_recipe",
    "build_run",
    "check_prompt_lengths",
    "check_runtime",
    "check_sampler",
    "check_teacher_servers",
    "check_writable",
    "grid_texts",
    "items_of",
    "load_config",
    "load_evaluation_problems",
    "make_sampler",
    "make_served_scorers",
    "make_verifier",
    "override_texts",
    "part_from",
    "rating_plan",
    "read_prompts",
    "read_run_file",
    "resolve_config",
    "settings_of",
    "to_toml",
    "verify_run",
]
