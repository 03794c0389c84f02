"""Which run is this?  TOML to parts, with everything refused that can be refused before any compute."""

from tutelage.config.assembly import RunAssembly
from tutelage.config.build import build_run
from tutelage.config.evaluation import build_evaluation_sets, load_evaluation_problems
from tutelage.config.load import load_config, read_run_file, resolve_config, settings_of, to_toml
from tutelage.config.models import load_model
from tutelage.config.parts import part_from
from tutelage.config.prompts import Prompts, check_lengths, check_prompt_lengths, read_prompts
from tutelage.config.recipes import build_phases, build_recipe
from tutelage.config.resuming import check_writable
from tutelage.config.schema import DataConfig, EvaluationSetConfig, ModelConfig, PhaseConfig, RunConfig
from tutelage.config.serving import (
    check_sampler,
    check_teacher_server,
    make_sampler,
    make_served_scorer,
)
from tutelage.config.source import items_of
from tutelage.config.verification import decoder_of, make_verifier

__all__ = [
    "DataConfig",
    "EvaluationSetConfig",
    "ModelConfig",
    "PhaseConfig",
    "Prompts",
    "RunAssembly",
    "RunConfig",
    "build_evaluation_sets",
    "build_phases",
    "build_recipe",
    "build_run",
    "check_lengths",
    "check_prompt_lengths",
    "check_sampler",
    "check_teacher_server",
    "check_writable",
    "decoder_of",
    "items_of",
    "load_config",
    "load_evaluation_problems",
    "load_model",
    "make_sampler",
    "make_served_scorer",
    "make_verifier",
    "part_from",
    "read_prompts",
    "read_run_file",
    "resolve_config",
    "settings_of",
    "to_toml",
]
