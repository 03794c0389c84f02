"""Which models does a run have?  Student, teachers, experts, a reference: how they are loaded, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tutelage.config.model_sections import FollowerConfig, ModelConfig, RouteConfig, StudentConfig, TeacherConfig
from tutelage.config.schema import RunConfig
from tutelage.errors import ConfigurationError
from tutelage.models import (
    ALL_WEIGHTS,
    DTYPES,
    ContextLength,
    DynamicFusion,
    FixedFusion,
    FusedTeacher,
    LanguageModel,
    ModelSet,
    MovingReference,
    Reference,
    TrainableSettings,
    check_learnable,
    context_length_of,
    load_language_model,
    meta_model_of,
    reference_snapshot,
)
from tutelage.runtime import LocalRuntime
from tutelage.tasks import Problem

__all__ = [
    "EXPERT",
    "ROUTE",
    "LoadStart",
    "as_it_starts",
    "is_served",
    "key_of_teacher",
    "check_teacher_names",
    "context_length",
    "load_meta_model",
    "load_meta_models",
    "load_model",
    "load_reference",
    "load_student",
    "load_teachers",
    "named_teachers",
    "other_models",
    "reference_of",
    "student_at_start",
]

# Prefixes of the keys of further models: those that a teacher is fused with, and teachers with a name.
EXPERT, ROUTE = "teacher.experts", "teacher.routes."

LoadStart = Callable[[float], LanguageModel]
"""loads the student as it was at the run's start, to be refreshed with this share"""


def other_models(config: RunConfig) -> Iterator[tuple[str, ModelConfig]]:
    """Every model beside the student and the teacher, with its key in the run file."""
    for place, expert in enumerate(config.teacher.experts):
        yield f"{EXPERT}[{place}]", expert
        if expert.base is not None:
            yield f"{EXPERT}[{place}].base", _base_of(expert, expert.base)
    for name, model in config.teacher.routes.items():
        yield ROUTE + name, model
    if config.reference.path is not None:
        yield "reference", config.reference


def named_teachers(config: RunConfig) -> list[tuple[str | None, ModelConfig]]:
    """The teacher, which has no name, and those that a row of the data may name."""
    return [(None, config.teacher), *config.teacher.routes.items()]


def key_of_teacher(name: str | None) -> str:
    """Of a teacher's table in the run file, by the name that prompts call it."""
    return "teacher" if name is None else ROUTE + name


def is_served(model: ModelConfig) -> bool:
    """Whether it is a teacher that runs as a server; its weights are not read here."""
    return isinstance(model, TeacherConfig | RouteConfig) and model.server is not None


def context_length(model: ModelConfig) -> ContextLength | None:
    """Most tokens of a text, see `models.context`; a server holds one set of rotary factors at every length."""
    length = context_length_of(model.source)
    if length is not None and is_served(model):
        return None if length.made_for is None else ContextLength(length.made_for, length.made_for)
    return length


def _base_of(expert: ModelConfig, path: str) -> ModelConfig:
    """An expert's base is loaded as the expert is; a revision is the expert's own."""
    kept = {name: getattr(expert, name) for name in ModelConfig.model_fields}
    return ModelConfig(**(kept | {"path": path, "revision": None}))


def load_model(
    model: ModelConfig, tokenizer: Any, device: str, path: str | None = None, **learning: Any
) -> LanguageModel:
    """A model as its table says; `path` replaces its weights (a checkpoint), `learning` is what makes it a student."""
    source = model.source if path is None else replace(model.source, path=path, revision=None)
    return load_language_model(source, tokenizer, device=device, **learning)


def load_student(
    config: RunConfig, tokenizer: Any, device: str, checkpoint: str | None = None
) -> tuple[LanguageModel, LoadStart]:
    """The student as the run begins, or as a checkpoint has it, and how to get it as it was at the run's start.

    Raises:
      ConfigurationError: it cannot be computed as [runtime] and [rollout] say.
    """
    student, runtime = config.student, config.runtime
    learning: dict[str, Any] = {
        "trainable": student.what_learns,
        "quantization": student.quantization,
        "seed": config.seed,
    }
    if student.learns_whole:
        model = load_model(student, tokenizer, device, checkpoint, **learning)

        def load_start(share: float) -> LanguageModel:
            return load_model(as_it_starts(student, share), tokenizer, device)
    else:
        model = load_model(student, tokenizer, device, **learning)
        start = reference_snapshot(model)
        if checkpoint is not None:
            model.trainable.load(Path(checkpoint))

        def load_start(share: float) -> LanguageModel:
            return reference_snapshot(start)

    if student.quantization is None:
        check_learnable(model.module, student.path)
    model.compile = config.rollout.compile
    model.autocast = _autocast_of(config)
    model.checkpoints_gradient, model.compiles_update = runtime.gradient_checkpointing, runtime.compile
    model.check_settings()
    return model, load_start


def load_teachers(
    config: RunConfig, tokenizers: Mapping[str, Any], runtime: LocalRuntime
) -> dict[str | None, LanguageModel]:
    """All teachers by the name that prompts call them, None for those that name none; a server's is not among them.

    Args:
      tokenizers: by the models' keys in the run file.
    """
    teachers: dict[str | None, LanguageModel] = {}
    if config.teacher.server is None:
        teachers[None] = runtime.placed_teacher(lambda device: _load_fused(config, tokenizers, device))
    for name, model in config.teacher.routes.items():
        if not is_served(model):
            teachers[name] = load_model(model, tokenizers[ROUTE + name], runtime.device)
    for decoded in [member for teacher in teachers.values() for member in teacher.members]:
        decoded.compile = config.rollout.compile
    return teachers


def as_it_starts(student: StudentConfig, share: float) -> ModelConfig:
    """The table by which a reference, or a teacher, is loaded that begins as the student.

    A mean of its weights (a share below 1) moves by less than half precision resolves, so it is kept in float32.
    """
    is_narrow_mean = share < 1 and student.dtype == "bfloat16"
    return student.model_copy(update={"dtype": "float32"}) if is_narrow_mean else student


def load_reference(
    config: RunConfig,
    tokenizers: Mapping[str, Any],
    device: str,
    student: LanguageModel,
    load_start: LoadStart,
) -> LanguageModel:
    """The model of [reference], or else the student with its initial weights, computed as the student is.

    Args:
      tokenizers: by the models' keys in the run file.
      load_start: see `load_student`.
    """
    if config.reference.path is not None:
        return load_model(config.reference, tokenizers["reference"], device)
    return student_at_start(config.reference, student, load_start)


def student_at_start(settings: FollowerConfig, student: LanguageModel, load_start: LoadStart) -> LanguageModel:
    """A model that begins as the student and is computed as it is; `settings` say how it goes on."""
    model = load_start(settings.share)
    model.autocast = student.autocast
    return model


def reference_of(config: RunConfig, models: ModelSet) -> Reference:
    """How the model changes that follows the student, a teacher or the reference; most runs have none."""
    for settings, model in ((config.teacher, models.teacher), (config.reference, models.reference)):
        if model is not None and settings.refresh_every:
            return MovingReference(models.student, model, settings.refresh_every, settings.share)
    return Reference()


def load_meta_models(config: RunConfig, tokenizers: Mapping[str, Any]) -> dict[str, LanguageModel]:
    """Every model of the run without its weights, by its key in the run file.

    Raises:
      ModelError: files do not fit their configuration.
      ConfigurationError: the student has nothing that could learn as [student] says.
    """
    student = load_meta_model(config.student, tokenizers["student"], config.student.what_learns)
    student.autocast = _autocast_of(config)
    teacher = {"teacher": config.teacher} if config.has_teacher else {}
    others = {**teacher, **dict(other_models(config))}
    return {"student": student, **{key: load_meta_model(model, tokenizers[key]) for key, model in others.items()}}


def load_meta_model(model: ModelConfig, tokenizer: Any, trainable: TrainableSettings = ALL_WEIGHTS) -> LanguageModel:
    """A model as its table says, without its weights; the files of a served teacher may lack weights."""
    return meta_model_of(model.source, tokenizer, trainable=trainable, needs_weights=not is_served(model))


def _load_fused(config: RunConfig, tokenizers: Mapping[str, Any], device: str) -> LanguageModel:
    """The teacher for prompts that name none, with its experts fused into it."""
    own, others = config.teacher, dict(other_models(config))
    members, weights, is_dynamic = [load_model(own, tokenizers["teacher"], device)], [own.weight], False
    for place, expert in enumerate(own.experts):
        is_dynamic |= expert.weight == "dynamic"
        weight = 1.0 if expert.weight == "dynamic" else expert.weight
        key = f"{EXPERT}[{place}]"
        for each, its_weight in ((key, weight), (f"{key}.base", -weight)):
            if each in others:
                members.append(load_model(others[each], tokenizers[each], device))
                weights.append(its_weight)
    if len(members) == 1:
        return members[0]
    if is_dynamic:
        return FusedTeacher(members, DynamicFusion(own.largest_dynamic_weight, own.dynamic_weight_increment))
    return FusedTeacher(members, FixedFusion(tuple(weights)))


def _autocast_of(config: RunConfig) -> torch.dtype | None:
    return None if config.runtime.autocast is None else DTYPES[config.runtime.autocast]


def check_teacher_names(problems: Sequence[Problem], known: Mapping[str, Any], column: str) -> None:
    """Refuse rows that name a teacher which is not there, and routes that no row takes."""
    if not known:
        return
    names = ", ".join(known)
    for problem in problems:
        if problem.teacher is not None and problem.teacher not in known:
            raise ConfigurationError(
                f"problem {problem.id} names the teacher {problem.teacher!r} in column {column!r}; teacher.routes has "
                f"{names}. Add the route, or leave the row's column empty for the teacher itself."
            )
    if all(problem.teacher is None for problem in problems):
        raise ConfigurationError(
            f"teacher.routes has {names}, but no row names a teacher in column {column!r}. Set data.teacher_column to "
            "the column that does, or drop teacher.routes."
        )
