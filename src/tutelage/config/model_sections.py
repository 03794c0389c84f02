"""The tables of the run file that name a model: [student], [teacher] with its experts and routes, [reference]."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, TypeAdapter, field_validator, model_validator

from tutelage.config.section import OptionalPath, PathText, Seconds, Section
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
from tutelage.rollout import DEFAULT_RETRIES, DEFAULT_TIMEOUT_SECONDS

__all__ = [
    "ExpertConfig",
    "FollowerConfig",
    "ModelConfig",
    "ReferenceConfig",
    "RouteConfig",
    "StudentConfig",
    "TeacherConfig",
    "settings_of_trainable",
]


def settings_of_trainable(table: Mapping[str, Any]) -> type[TrainableSettings]:
    """What a table [student.trainable] is made into, by its name."""
    name = table.get("name")
    if not isinstance(name, str) or name not in TRAINABLES:
        raise ConfigurationError(f"student.trainable.name is {name!r}; expected one of {', '.join(TRAINABLES)}.")
    return TRAINABLES[name]


def _trainable_from(table: Mapping[str, Any]) -> TrainableSettings:
    fields = {name: value for name, value in table.items() if name != "name"}
    return TypeAdapter(settings_of_trainable(table)).validate_python(fields)


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
    is the student itself with its initial weights or, with `refresh_every` and `share`, with later ones; all else of
    the model is then the student's.
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
