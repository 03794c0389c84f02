"""What a run file may say. Every field has a default that is a vetted value, except what only the user can know.

The sections that belong to a part of the library are that part's own frozen dataclass (`RolloutSettings`, ...), so a
default is written once. Those that name a model are in `model_sections.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import date, datetime
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, SerializeAsAny, TypeAdapter, field_validator, model_validator

from tutelage.config.model_sections import ModelConfig, ReferenceConfig, StudentConfig, TeacherConfig
from tutelage.config.section import (
    MAX_SECONDS,
    FileName,
    OptionalFileName,
    OptionalPath,
    PathText,
    Seconds,
    Section,
)
from tutelage.errors import ConfigurationError, printable
from tutelage.paths import expanded_path
from tutelage.rollout import HostedSettings
from tutelage.runtime import LocalRuntime
from tutelage.tasks import (
    BENCHMARKS,
    DEFAULT_ANSWER_COLUMN,
    DEFAULT_PRIVILEGED_TEMPLATE,
    DEFAULT_PROMPT_COLUMN,
    DEFAULT_SPLIT,
    DEFAULT_TASK,
    DEFAULT_TRUNCATED_ANSWERS,
    Privilege,
    PromptStyle,
    TruncatedAnswers,
    name_and_split,
)
from tutelage.training import (
    DEFAULT_LOSS_FORM,
    MICRO_BATCH_TOKENS,
    UPDATES,
    CheckpointSettings,
    LogSettings,
    OptimizerSettings,
    RolloutSettings,
    RunLabel,
)

__all__ = [
    "AXES",
    "DataConfig",
    "EvaluationConfig",
    "EvaluationSetConfig",
    "EvaluationTextConfig",
    "LoggingConfig",
    "PhaseConfig",
    "RunConfig",
    "RuntimeConfig",
    "settings_of_update",
]

# Tables that name a member of an axis; a phase may replace them.
AXES = ("policy", "target", "divergence", "weighting")

# A number beyond these is a typing error that would exhaust the machine's memory or crash a library.
MAX_THREADS = 1024
MAX_ANSWERS = 2**20  # of one step
MAX_SAMPLES = 2**16  # of one problem
MAX_RETAINED = 2**16  # right answers of a set
MAX_NEW_TOKENS = 2**24


def settings_of_update(table: Mapping[str, Any]) -> type[OptimizerSettings]:
    """What a table [optimizer] is made into, by the name of its update."""
    name = table.get("name", OptimizerSettings.name)
    if not isinstance(name, str) or name not in UPDATES:
        raise ConfigurationError(f"optimizer.name is {name!r}; expected one of {', '.join(UPDATES)}.")
    return UPDATES[name].settings


class SourceConfig(Section):
    """Where rows come from; a path with brackets names the split too, as "openai/gsm8k:main[train[:100]]"."""

    knows_benchmarks: ClassVar[bool] = False

    path: PathText
    split: str

    @model_validator(mode="before")
    @classmethod
    def _split_of_the_path(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not isinstance(values.get("path"), str):
            return values
        path, split = name_and_split(values["path"])
        if split is None:
            return values
        if values.get("split", split) != split:
            raise ConfigurationError(
                f"the data set {values['path']!r} names the split {split!r}, and `split` beside it is "
                f"{values['split']!r}. Drop one of them."
            )
        if cls.knows_benchmarks and path in BENCHMARKS and not Path(path).exists():
            raise ConfigurationError(
                f"{values['path']!r} names a split, but {path} is a benchmark that brings its own. Write {path}, or "
                f"its data set with a split: {BENCHMARKS[path].path}[{split}]."
            )
        return {**values, "path": path, "split": split}


class DataConfig(SourceConfig):
    """[data]: which prompts, and how they are put to the models. `data = "PATH"` is short for `path`.

    `answer_column = ""`: the prompts have no answers. `verifier = ""`: answers are not judged. `template_date`: for
    chat templates that ask for the date; None = the moment when the run is first made, which is kept with it.
    `truncated_answers`: what counts of one that was cut at the length limit; "whole" = what is whole in it.
    `privileged_column`: text that the teacher alone reads, put beside the question by `privileged_template`;
    `teacher_prompt_column`: all that it reads in place of the prompt, which outranks it in rows that have one.
    """

    split: str = DEFAULT_SPLIT
    prompt_column: str = DEFAULT_PROMPT_COLUMN
    answer_column: str = DEFAULT_ANSWER_COLUMN
    teacher_column: str = "teacher"
    privileged_column: str | None = None
    privileged_template: str = DEFAULT_PRIVILEGED_TEMPLATE
    teacher_prompt_column: str | None = None
    limit: int | None = Field(default=None, ge=1)
    shuffle: bool = False
    system_prompt: str | None = None
    teacher_system_prompt: str | None = None
    use_chat_template: bool | None = None
    chat_template: str | None = None
    template_date: str | None = None
    chat_template_kwargs: dict[str, Any] = {}
    teacher_chat_template_kwargs: dict[str, Any] | None = None
    max_prompt_tokens: int = Field(default=1024, ge=1)
    verifier: str = DEFAULT_TASK
    truncated_answers: TruncatedAnswers = DEFAULT_TRUNCATED_ANSWERS
    scores: OptionalPath = None

    @property
    def differs_for_teacher(self) -> bool:
        """Whether a teacher is asked something else than the student, whatever their chat templates do."""
        own = (
            self.privileged_column,
            self.teacher_prompt_column,
            self.teacher_system_prompt,
            self.teacher_chat_template_kwargs,
        )
        return any(value is not None for value in own)

    @property
    def privilege(self) -> Privilege:
        """What the teacher alone reads."""
        return Privilege(self.privileged_column, self.privileged_template, self.teacher_prompt_column)

    @field_validator("template_date", mode="before")
    @classmethod
    def _is_a_date(cls, value: Any) -> Any:
        text = value.isoformat() if isinstance(value, date) else value  # a datetime is a date
        try:
            datetime.fromisoformat(text)
        except (TypeError, ValueError) as problem:
            if value is None:
                return None
            raise ConfigurationError(
                f"data.template_date is {value!r}; expected a date such as 2026-03-01, or one with a time such as "
                "2026-03-01T09:30:00. Leave it out for the moment when the run is first made."
            ) from problem
        return text

    @property
    def style(self) -> PromptStyle:
        """How problems are put to the models."""
        return PromptStyle(
            self.system_prompt or None,
            self.use_chat_template,
            self.chat_template_kwargs,
            self.chat_template,
            self.teacher_system_prompt,
            self.teacher_chat_template_kwargs,
        )


class EvaluationSetConfig(SourceConfig):
    """[[evaluation.sets]]: problems with answers. A plain string is short for `path`."""

    knows_benchmarks: ClassVar[bool] = True

    name: OptionalFileName = None
    split: str = "test"
    prompt_column: str = DEFAULT_PROMPT_COLUMN
    answer_column: str = Field(default=DEFAULT_ANSWER_COLUMN, min_length=1)
    limit: int | None = Field(default=None, ge=1)


class EvaluationTextConfig(Section):
    """[[evaluation.texts]]: texts whose probability is looked at; with a `prompt_column` they are answers."""

    path: PathText
    name: OptionalFileName = None
    split: str = "test"
    prompt_column: str | None = Field(default=None, min_length=1)
    text_column: str = Field(default="text", min_length=1)
    limit: int | None = Field(default=None, ge=1)


class EvaluationConfig(Section):
    """[evaluation]: how good is it, while it trains."""

    sets: list[EvaluationSetConfig] = []
    texts: list[EvaluationTextConfig] = []
    teacher_reads: bool = False
    every: int = Field(default=20, ge=0)
    num_samples: int = Field(default=4, ge=1, le=MAX_SAMPLES)
    temperature: float = Field(default=1.0, ge=0)
    greedy: bool = False
    max_new_tokens: int | None = Field(default=None, ge=1, le=MAX_NEW_TOKENS)
    retained_answers: int = Field(default=0, ge=0, le=MAX_RETAINED)

    @model_validator(mode="after")
    def _asks_something(self) -> Self:
        for key in ("texts", "teacher_reads"):
            if getattr(self, key) and not self.sets:
                raise ConfigurationError(
                    f"evaluation.{key} is set, and evaluation.sets is empty, so that nothing is ever evaluated. Add a "
                    f"set of problems, or drop evaluation.{key}."
                )
        return self

    @model_validator(mode="after")
    def _retains_what_the_student_draws(self) -> Self:
        if self.retained_answers and self.temperature != 1:
            raise ConfigurationError(
                f"evaluation.retained_answers is {self.retained_answers}, but evaluation.temperature is "
                f"{self.temperature:g}; the estimate holds for answers drawn at temperature 1. Set it to 1, or drop "
                "evaluation.retained_answers."
            )
        return self


class RuntimeConfig(Section):
    """[runtime]: where it runs.

    `micro_batch_tokens` stays None only where it is chosen by a GPU's free memory, see `config.step_memory`.
    """

    device: str = LocalRuntime.device
    threads: int | None = Field(default=None, ge=1, le=MAX_THREADS)
    micro_batch_tokens: int | None = Field(default=None, ge=1)
    strategy: Literal["ddp", "fsdp2"] = "ddp"
    shard_teacher: bool = False
    timeout_seconds: Seconds = 1800
    autocast: Literal["bfloat16"] | None = None
    gradient_checkpointing: bool = False
    compile: bool = False
    loss: Literal["auto", "chunked", "tiled", "recomputed"] = DEFAULT_LOSS_FORM

    @model_validator(mode="before")
    @classmethod
    def _auto_is_left_out(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("micro_batch_tokens") != "auto":
            return values
        return {name: value for name, value in values.items() if name != "micro_batch_tokens"}

    @model_validator(mode="after")
    def _is_fixed_without_a_gpu(self) -> Self:
        runs_on_gpu = torch.cuda.is_available() and self.device.split(":")[0] in ("auto", "cuda")
        if self.micro_batch_tokens is None and not runs_on_gpu:
            # Not by assignment, after which it would count as named.
            self.__dict__["micro_batch_tokens"] = MICRO_BATCH_TOKENS
        return self

    @property
    def names_micro_batch(self) -> bool:
        """Whether the run file names the tokens of a micro-batch."""
        return "micro_batch_tokens" in self.model_fields_set


class LoggingConfig(Section):
    """[logging]: how many rollouts are kept as text, how often expensive metrics are taken, which trackers are used."""

    samples_per_log: int = Field(default=LogSettings.samples_per_log, ge=0)
    steps_per_log: int = Field(default=LogSettings.steps_per_log, ge=1)
    diagnostics_every: int = Field(default=LogSettings.diagnostics_every, ge=0)
    trackers: list[str] = ["auto"]
    project: str = RunLabel.project


class PhaseConfig(Section):
    """[[phase]]: what holds for some of the run's steps in place of the run's own tables. Left out = the run's own.

    Policy, target, losses and weighting stay tables here, as in `RunConfig`.
    """

    name: str | None = None
    steps: int | None = Field(default=None, ge=1)
    policy: dict[str, Any] | None = None
    target: dict[str, Any] | None = None
    divergence: dict[str, Any] | None = None
    loss: list[dict[str, Any]] | None = None
    weighting: dict[str, Any] | None = None
    learning_rate: float | None = Field(default=None, gt=0)

    @field_validator("name")
    @classmethod
    def _can_be_part_of_a_key(cls, name: str | None) -> str | None:
        is_plain = name is None or (printable(name) == name and not set(name) & set(".=\n\t"))
        if not is_plain or name == "" or (name is not None and name.isdigit()):
            raise ConfigurationError(
                f"a phase has the name {name!r}, which --set phase.NAME.KEY=... could not find. Use one such as 'sft'."
            )
        return name


class RunConfig(Section):
    """One run. Policy, target, losses, weighting and rewards stay tables; `config.parts` makes the parts from them.

    `divergence` is short for a `loss` of one term.
    """

    name: FileName = "run"
    output: OptionalPath = None
    seed: int = Field(default=0, ge=0, lt=2**63)
    steps: int = Field(default=400, ge=1)
    student: StudentConfig
    teacher: TeacherConfig = None  # type: ignore[assignment]  # left out = the student's, see below
    reference: ReferenceConfig = ReferenceConfig()
    data: DataConfig
    policy: dict[str, Any] = {"name": "student"}
    target: dict[str, Any] = {"name": "teacher"}
    divergence: dict[str, Any] | None = {"name": "reverse_kl"}
    loss: list[dict[str, Any]] = []
    weighting: dict[str, Any] = {"name": "uniform"}
    reward: list[dict[str, Any]] = []
    reward_combination: dict[str, Any] = {"name": "weighted_sum"}
    phase: list[PhaseConfig] = []
    rollout: RolloutSettings = RolloutSettings()
    vllm: HostedSettings = HostedSettings()
    optimizer: SerializeAsAny[OptimizerSettings] = OptimizerSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    evaluation: EvaluationConfig = EvaluationConfig()
    runtime: RuntimeConfig = Field(default_factory=RuntimeConfig)
    logging: LoggingConfig = LoggingConfig()

    @field_validator("optimizer", mode="before")
    @classmethod
    def _has_fields_of_its_update(cls, value: Any) -> Any:
        kind = settings_of_update(value) if isinstance(value, dict) else OptimizerSettings
        return value if kind is OptimizerSettings else TypeAdapter(kind).validate_python(value)

    @field_validator("vllm")
    @classmethod
    def _vllm_can_be_used(cls, settings: HostedSettings) -> HostedSettings:
        if not 0 < settings.timeout_seconds <= MAX_SECONDS or settings.retries < 0:
            raise ConfigurationError(
                f"vllm.timeout_seconds is {settings.timeout_seconds:g} and vllm.retries {settings.retries}; expected "
                f"seconds above 0, at most {MAX_SECONDS:g}, and retries from 0 up. Leave them out for the defaults."
            )
        if settings.weights_folder is None:
            return settings
        return replace(settings, weights_folder=expanded_path(settings.weights_folder, "vllm.weights_folder"))

    @model_validator(mode="after")
    def _a_teacher_may_be_missing(self) -> Self:
        """Without a teacher, the student's files stand for what is read of one: tokenizer, sizes, stop ids.

        So they do for one that is the student.
        """
        own = {name: getattr(self.student, name) for name in ModelConfig.model_fields}
        # Not by assignment, after which it would count as named.
        if not self.has_teacher:
            self.__dict__["teacher"] = TeacherConfig(**own)
        elif self.teacher.is_student:
            self.teacher.__dict__.update(own)
        return self

    @model_validator(mode="after")
    def _has_one_objective(self) -> Self:
        parts: list[tuple[str, RunConfig | PhaseConfig]] = [("", self)]
        parts += [(f"phase {each.name or place}: ", each) for place, each in enumerate(self.phase, start=1)]
        for where, part in parts:
            if part.loss and part.divergence is not None:
                raise ConfigurationError(
                    f"{where}there are [[loss]] tables beside [divergence], which is short for one of them. Make it a "
                    "[[loss]] as well, or drop it."
                )
        return self

    @model_validator(mode="after")
    def _sizes_are_possible(self) -> Self:
        rollout = self.rollout
        answers = rollout.prompts_per_step * rollout.samples_per_prompt
        if answers > MAX_ANSWERS:
            raise ConfigurationError(
                f"rollout.prompts_per_step times rollout.samples_per_prompt is {answers} answers in every step; "
                f"expected at most {MAX_ANSWERS}. Lower one of them."
            )
        if self.optimizer.updates_per_batch > rollout.prompts_per_step:
            raise ConfigurationError(
                f"optimizer.updates_per_batch is {self.optimizer.updates_per_batch}, but a step has "
                f"rollout.prompts_per_step = {rollout.prompts_per_step} prompts to share among its updates. Lower the "
                "one, or raise the other."
            )
        if rollout.max_new_tokens > MAX_NEW_TOKENS:
            raise ConfigurationError(
                f"rollout.max_new_tokens is {rollout.max_new_tokens}; no model writes answers of more than "
                f"{MAX_NEW_TOKENS} tokens. Lower it."
            )
        return self

    @property
    def has_teacher(self) -> bool:
        """Whether the run file names a teacher."""
        return "teacher" in self.model_fields_set

    @property
    def output_folder(self) -> str:
        """Where the run's files go."""
        return self.output or f"runs/{self.name}"

    @property
    def evaluation_tokens(self) -> int:
        """Length limit of answers that are evaluated."""
        return self.evaluation.max_new_tokens or self.rollout.max_new_tokens

    @property
    def max_answer_tokens(self) -> int:
        """Length limit of any answer of the run."""
        return max(self.rollout.max_new_tokens, self.evaluation_tokens)
