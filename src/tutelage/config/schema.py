"""What a run file may say. Every field has a default that is a vetted value, except what only the user can know.

The sections that belong to a part of the library are that part's own frozen dataclass (`RolloutSettings`, ...), so a
default is written once.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from tutelage.errors import ConfigurationError
from tutelage.training import CheckpointSettings, OptimizerSettings, RolloutSettings

__all__ = [
    "DataConfig",
    "EvaluationConfig",
    "EvaluationSetConfig",
    "LoggingConfig",
    "ModelConfig",
    "RunConfig",
    "RuntimeConfig",
]


class Section(BaseModel):
    """A table of the run file."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelConfig(Section):
    """[student] and [teacher]: which model, and how far it is trusted. `student = "PATH"` is short for `path`."""

    path: str
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    revision: str | None = None
    trust_remote_code: bool = False
    allow_pickle: bool = False
    attention: str | None = None


class DataConfig(Section):
    """[data]: which prompts, and how they are put to the models. `data = "PATH"` is short for `path`.

    `answer_column = ""`: the prompts have no answers. `verifier = ""`: answers are not judged.
    """

    path: str
    split: str = "train"
    prompt_column: str = "problem"
    answer_column: str = "answer"
    limit: int | None = Field(default=None, ge=1)
    shuffle: bool = False
    system_prompt: str | None = None
    teacher_system_prompt: str | None = None
    use_chat_template: bool | None = None
    chat_template_kwargs: dict[str, Any] = {}
    teacher_chat_template_kwargs: dict[str, Any] | None = None
    max_prompt_tokens: int = Field(default=1024, ge=1)
    verifier: str = "math"


class EvaluationSetConfig(Section):
    """[[evaluation.sets]]: problems with answers. A plain string is short for `path`."""

    path: str
    name: str | None = None
    split: str = "test"
    prompt_column: str = "problem"
    answer_column: str = Field(default="answer", min_length=1)
    limit: int | None = Field(default=None, ge=1)

    @field_validator("name")
    @classmethod
    def _can_be_a_file_name(cls, name: str | None) -> str | None:
        if name is not None and (not name or name.startswith(".") or "/" in name or "\\" in name):
            raise ConfigurationError(
                f"evaluation.sets has the name {name!r}, under which no file can be kept. Use a name such as 'math500'."
            )
        return name


class EvaluationConfig(Section):
    """[evaluation]: how good is it, while it trains."""

    sets: list[EvaluationSetConfig] = []
    every: int = Field(default=20, ge=0)
    num_samples: int = Field(default=4, ge=1)
    temperature: float = Field(default=1.0, ge=0)
    greedy: bool = False
    max_new_tokens: int | None = Field(default=None, ge=1)


class RuntimeConfig(Section):
    """[runtime]: where it runs."""

    device: str = "auto"
    threads: int | None = Field(default=None, ge=1)
    micro_batch_tokens: int = Field(default=16_384, ge=1)


class LoggingConfig(Section):
    """[logging]: how many rollouts are kept as text."""

    samples_per_log: int = Field(default=4, ge=0)
    steps_per_log: int = Field(default=1, ge=1)


class RunConfig(Section):
    """One run. Policy, target and divergence stay tables here; `config.parts` makes the parts from them."""

    name: str = "run"
    output: str | None = None
    seed: int = Field(default=0, ge=0, lt=2**63)
    steps: int = Field(default=400, ge=1)
    student: ModelConfig
    teacher: ModelConfig
    data: DataConfig
    policy: dict[str, Any] = {"name": "student"}
    target: dict[str, Any] = {"name": "teacher"}
    divergence: dict[str, Any] = {"name": "reverse_kl"}
    rollout: RolloutSettings = RolloutSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    evaluation: EvaluationConfig = EvaluationConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    logging: LoggingConfig = LoggingConfig()

    @property
    def output_folder(self) -> str:
        """Where the run's files go."""
        return self.output or f"runs/{self.name}"
