"""What a run file may say. Every field has a default that is a vetted value, except what only the user can know.

The sections that belong to a part of the library are that part's own frozen dataclass (`RolloutSettings`, ...), so a
default is written once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializeAsAny,
    TypeAdapter,
    field_validator,
    model_validator,
)

from tutelage.errors import ConfigurationError, printable
from tutelage.models import (
    ALL_WEIGHTS,
    DEFAULT_DTYPE,
    TRAINABLES,
    AdapterSettings,
    ModelSource,
    TrainableSettings,
    base_of,
)
from tutelage.paths import check_file_name, expanded_path
from tutelage.rollout import DEFAULT_RETRIES, DEFAULT_TIMEOUT_SECONDS, HostedSettings
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
    "ExpertConfig",
    "FollowerConfig",
    "LoggingConfig",
    "ModelConfig",
    "PhaseConfig",
    "ReferenceConfig",
    "RunConfig",
    "RouteConfig",
    "RuntimeConfig",
    "StudentConfig",
    "TeacherConfig",
    "settings_of_trainable",
    "settings_of_update",
]


# Tables that name a member of an axis; a phase may replace them.
AXES = ("policy", "target", "divergence", "weighting")

# Stands for the key in messages that do not know it; `config.load` puts the key there.
THIS = "this setting"

# A number beyond these is a typing error that would exhaust the machine's memory or crash a library.
MAX_THREADS = 1024
MAX_ANSWERS = 2**20  # of one step
MAX_SAMPLES = 2**16  # of one problem
MAX_RETAINED = 2**16  # right answers of a set
MAX_NEW_TOKENS = 2**24
MAX_SECONDS = 365 * 24 * 3600.0


def _path(text: str | None) -> str | None:
    return None if text is None else expanded_path(text, THIS)


def _file_name(name: str | None) -> str | None:
    return None if name is None else check_file_name(name, THIS, "first-run")


# What a path or a name of a file is, wherever a run file has one.
PathText = Annotated[str, AfterValidator(_path)]
OptionalPath = Annotated[str | None, AfterValidator(_path)]
FileName = Annotated[str, AfterValidator(_file_name)]
OptionalFileName = Annotated[str | None, AfterValidator(_file_name)]
Seconds = Annotated[float, Field(gt=0, le=MAX_SECONDS)]


def settings_of_update(table: Mapping[str, Any]) -> type[OptimizerSettings]:
    """What a table [optimizer] is made into, by the name of its update."""
    name = table.get("name", OptimizerSettings.name)
    if not isinstance(name, str) or name not in UPDATES:
        raise ConfigurationError(f"optimizer.name is {name!r}; expected one of {', '.join(UPDATES)}.")
    return UPDATES[name].settings


def settings_of_trainable(table: Mapping[str, Any]) -> type[TrainableSettings]:
    """What a table [student.trainable] is made into, by its name."""
    name = table.get("name")
    if not isinstance(name, str) or name not in TRAINABLES:
        raise ConfigurationError(f"student.trainable.name is {name!r}; expected one of {', '.join(TRAINABLES)}.")
    return TRAINABLES[name]


def _trainable_from(table: Mapping[str, Any]) -> TrainableSettings:
    fields = {name: value for name, value in table.items() if name != "name"}
    return TypeAdapter(settings_of_trainable(table)).validate_python(fields)


class Section(BaseModel):
    """A table of the run file."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelConfig(Section):
    """[student] and [teacher]: which model, and how far it is trusted. `student = "PATH"` is short for `path`."""

    path: PathText
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = DEFAULT_DTYPE
    revision: str | None = None
    trust_remote_code: bool = False
    allow_pickle: bool = False
    attention: str | None = None

    @property
    def source(self) -> ModelSource:
        """What is loaded."""
        return ModelSource(
            self.path, self.dtype, self.revision, self.trust_remote_code, self.allow_pickle, self.attention
        )


class StudentConfig(ModelConfig):
    """[student]: a model, and what of it learns.

    `trainable` names a member of TRAINABLES and its fields; `adapter` is short for the member "lora".
    """

    adapter: AdapterSettings | None = None
    trainable: dict[str, Any] | None = None
    quantization: Literal["4bit"] | None = None

    @property
    def what_learns(self) -> TrainableSettings:
        """The settings of what learns; all weights, unless something else is named."""
        return self.adapter or ALL_WEIGHTS if self.trainable is None else _trainable_from(self.trainable)

    @property
    def key_of_what_learns(self) -> str:
        """The table of the run file that says it."""
        return "student.trainable" if self.adapter is None else "student.adapter"

    @property
    def learns_whole(self) -> bool:
        """Weights of the model itself learn: no adapter is put into it, and `path` is none."""
        return self.what_learns.kind.changes_backbone and base_of(self.path) is None

    @field_validator("trainable", mode="before")
    @classmethod
    def _name_may_stand_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("trainable")
    @classmethod
    def _names_a_member(cls, table: dict[str, Any] | None) -> dict[str, Any] | None:
        if table is not None:
            _trainable_from(table)
        return table

    @model_validator(mode="after")
    def _can_learn(self) -> Self:
        if self.trainable is not None and self.adapter is not None:
            raise ConfigurationError(
                "student.trainable is set beside student.adapter, which is short for student.trainable.name = 'lora'. "
                "Drop one of them."
            )
        if self.quantization is not None and self.what_learns.kind.changes_backbone:
            raise ConfigurationError(
                "student.quantization is set, but 4-bit weights cannot learn. Add [student.adapter], which learns on "
                "top of them, or drop student.quantization."
            )
        return self


class ExpertConfig(ModelConfig):
    """[[teacher.experts]]: a model that the teacher's distribution is fused with, less its `base` if it has one."""

    base: OptionalPath = None
    weight: float | Literal["dynamic"] = 1.0


class FollowerConfig(ModelConfig):
    """A model that may follow the student: refreshed every so many steps.

    `share`: a of phi <- a theta + (1 - a) phi at every refresh, with phi its weights and theta the student's.
    """

    refresh_every: int = Field(default=0, ge=0)
    share: float = Field(default=1.0, gt=0, le=1)

    def check_share(self, role: str) -> None:
        """Refuse a share of a model that never moves; `role` is its table in the run file."""
        if self.share < 1 and not self.refresh_every:
            raise ConfigurationError(
                f"{role}.share is {self.share:g}, but {role}.refresh_every is 0, so the {role} never moves. Set "
                f"{role}.refresh_every to a number of steps, such as 1, or drop {role}.share."
            )


class RouteConfig(ModelConfig):
    """[teacher.routes.NAME]: the teacher of prompts that name it. With `server` it runs there, as in [teacher]."""

    server: str | None = None


class TeacherConfig(FollowerConfig):
    """[teacher]: a model, or several: `experts` make one distribution with it, `routes` take some of the prompts.

    With `server` it runs there; `path` is then for its tokenizer and configuration only. With `weights = "student"` it
    is the student itself with its initial weights or, with `refresh_every` and `share`, with later
    ones; all else of the model is then the student's.
    """

    path: PathText = None  # type: ignore[assignment]  # see `_has_weights`
    weights: Literal["student"] | None = None
    weight: float = 1.0
    experts: list[ExpertConfig] = []
    largest_dynamic_weight: float = Field(default=2.0, gt=0)
    dynamic_weight_increment: float = Field(default=0.1, gt=0)
    routes: dict[str, RouteConfig] = {}
    server: str | None = None
    timeout_seconds: Seconds = DEFAULT_TIMEOUT_SECONDS
    retries: int = Field(default=DEFAULT_RETRIES, ge=0)

    @field_validator("routes")
    @classmethod
    def _names_are_plain(cls, routes: dict[str, RouteConfig]) -> dict[str, RouteConfig]:
        for name in routes:
            if not name or printable(name) != name or set(name) & set("\n\t"):
                raise ConfigurationError(
                    f"teacher.routes has the name {name!r}; expected one without control characters. Use 'code', say."
                )
        return routes

    @field_validator("routes", "experts", mode="before")
    @classmethod
    def _paths_may_stand_alone(cls, models: Any) -> Any:
        def expanded(model: Any) -> Any:
            return {"path": model} if isinstance(model, str) else model

        if isinstance(models, dict):
            return {name: expanded(model) for name, model in models.items()}
        return [expanded(model) for model in models] if isinstance(models, list) else models

    @property
    def is_student(self) -> bool:
        """Whether its weights are those of the student, now or at an earlier step."""
        return self.weights == "student"

    @property
    def servers(self) -> dict[str | None, str]:
        """Addresses of teachers that are servers, by the name that prompts call them."""
        found: dict[str | None, str] = {} if self.server is None else {None: self.server}
        return found | {name: route.server for name, route in self.routes.items() if route.server is not None}

    @model_validator(mode="after")
    def _has_weights(self) -> Self:
        if not self.is_student:
            if "path" not in self.model_fields_set:
                raise ConfigurationError(
                    "teacher.path is missing; expected a model directory or hub id. Set it, or teacher.weights = "
                    "'student' for the student's own weights."
                )
            if self.refresh_every:
                raise ConfigurationError(
                    f"teacher.refresh_every is {self.refresh_every}, and the teacher is another model, which does not "
                    "follow the student. Set teacher.weights = 'student', or drop it."
                )
        taken = {*ModelConfig.model_fields, "experts", "routes", "server", "weight"} & self.model_fields_set
        if self.is_student and taken:
            raise ConfigurationError(
                f"teacher.weights is 'student', and teacher.{min(taken)} is set; such a teacher is the student alone, "
                "loaded as the student is. Drop one of the two."
            )
        self.check_share("teacher")
        return self

    @model_validator(mode="after")
    def _can_be_fused(self) -> Self:
        is_dynamic = any(expert.weight == "dynamic" for expert in self.experts)
        if is_dynamic and (len(self.experts) != 1 or self.experts[0].base is None or self.weight != 1):
            raise ConfigurationError(
                "teacher.experts has a dynamic weight, which is chosen for one expert with a base beside a teacher of "
                "weight 1. Give numbers as weights, or leave one expert and add its base."
            )
        if self.dynamic_weight_increment > self.largest_dynamic_weight:
            raise ConfigurationError(
                f"teacher.dynamic_weight_increment is {self.dynamic_weight_increment:g}, more than "
                f"teacher.largest_dynamic_weight = {self.largest_dynamic_weight:g}; nothing would be tried. Lower it."
            )
        if self.server is not None and self.experts:
            raise ConfigurationError(
                "teacher.server is set beside teacher.experts, with which the teacher is fused token by token here. "
                "Drop them, or leave teacher.server out."
            )
        if not self.experts and self.weight != 1:
            raise ConfigurationError(
                f"teacher.weight is {self.weight:g}, but there is nothing to weigh it against. Add teacher.experts, or "
                "leave it out."
            )
        return self


class ReferenceConfig(FollowerConfig):
    """[reference]: the third model of targets that have one. Without `path`, the student's initial weights."""

    path: OptionalPath = None  # type: ignore[assignment]  # every other model must be named
    reads: Literal["student", "teacher"] = "student"


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
