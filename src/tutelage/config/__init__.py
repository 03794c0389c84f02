"""Which run is this?  TOML to parts, with everything refused that can be refused before any compute."""

from tutelage.config.build import (
    build_engine,
    build_evaluation_sets,
    build_recipe,
    build_run,
    decoder_of,
    load_evaluation_problems,
    load_tokenizers,
    make_verifier,
    read_prompts,
    refuse_overlong,
    refuse_unwritable,
)
from tutelage.config.load import flattened, load_config, read_run_file, resolve_config, to_toml
from tutelage.config.parts import part_from
from tutelage.config.schema import DataConfig, EvaluationSetConfig, ModelConfig, RunConfig

__all__ = [
    "DataConfig",
    "EvaluationSetConfig",
    "ModelConfig",
    "RunConfig",
    "build_engine",
    "build_evaluation_sets",
    "build_recipe",
    "build_run",
    "decoder_of",
    "flattened",
    "load_config",
    "load_evaluation_problems",
    "load_tokenizers",
    "make_verifier",
    "part_from",
    "read_prompts",
    "read_run_file",
    "refuse_overlong",
    "refuse_unwritable",
    "resolve_config",
    "to_toml",
]
