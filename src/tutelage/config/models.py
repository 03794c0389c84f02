"""Which models does a run have?  Further teachers, experts, a reference: what is loaded, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tutelage.config.schema import ModelConfig, ReferenceConfig, RunConfig, TeacherConfig
from tutelage.errors import ConfigurationError
from tutelage.models import (
    DynamicFusion,
    FixedFusion,
    FusedTeacher,
    LanguageModel,
    load_language_model,
    load_tokenizer,
    outline_of,
)
from tutelage.targets import TARGETS, TargetRule
from tutelage.tasks import Problem

__all__ = [
    "load_model",
    "load_outline",
    "load_route_tokenizers",
    "load_teacher",
    "outline_teacher",
    "other_models",
    "reference_of",
    "refuse_unknown_teachers",
    "refuse_wrong_reference",
    "tokenizer_of",
]


def other_models(config: RunConfig) -> Iterator[tuple[str, ModelConfig]]:
    """Every model beside the student and the teacher, with its key in the run file."""
    for place, expert in enumerate(config.teacher.experts):
        yield f"teacher.experts[{place}]", expert
        if expert.base is not None:
            yield f"teacher.experts[{place}].base", _base_of(expert, expert.base)
    for name, model in config.teacher.routes.items():
        yield f"teacher.routes.{name}", model
    if config.reference.path is not None:
        yield "reference", config.reference


def _base_of(expert: ModelConfig, path: str) -> ModelConfig:
    """An expert's base is loaded as the expert is; a revision is the expert's own."""
    kept = {name: getattr(expert, name) for name in ModelConfig.model_fields}
    return ModelConfig(**(kept | {"path": path, "revision": None}))


def reference_of(config: RunConfig) -> ModelConfig:
    """What the reference is loaded from: the student's initial weights, unless it has a path."""
    return config.student if config.reference.path is None else config.reference


def tokenizer_of(model: ModelConfig) -> Any:
    """The tokenizer that comes with a model."""
    return load_tokenizer(model.path, revision=model.revision, trust_remote_code=model.trust_remote_code)


def load_route_tokenizers(config: RunConfig) -> dict[str, Any]:
    """The tokenizers of further teachers, whose chat templates may differ, by name."""
    return {name: tokenizer_of(model) for name, model in config.teacher.routes.items()}


def load_model(model: ModelConfig, tokenizer: Any, device: str, path: str | None = None) -> LanguageModel:
    """A model as its table says; `path` replaces its weights (a checkpoint)."""
    return load_language_model(
        path or model.path,
        tokenizer,
        dtype=model.dtype,
        device=device,
        revision=None if path else model.revision,
        trust_remote_code=model.trust_remote_code,
        allow_pickle=model.allow_pickle,
        attention=model.attention,
    )


def load_teacher(teacher: TeacherConfig, tokenizer: Any, device: str) -> LanguageModel:
    """The teacher, with its experts fused into it."""
    return _fused(teacher, tokenizer, lambda model, its_tokenizer: load_model(model, its_tokenizer, device))


def load_outline(model: ModelConfig, tokenizer: Any) -> LanguageModel:
    """A model as its table says, without its weights."""
    return outline_of(
        model.path,
        tokenizer,
        dtype=model.dtype,
        revision=model.revision,
        trust_remote_code=model.trust_remote_code,
        allow_pickle=model.allow_pickle,
    )


def outline_teacher(teacher: TeacherConfig, tokenizer: Any) -> LanguageModel:
    """The teacher with its experts, without their weights."""
    return _fused(teacher, tokenizer, load_outline)


def _fused(teacher: TeacherConfig, tokenizer: Any, load: Callable[[ModelConfig, Any], LanguageModel]) -> LanguageModel:
    loaded = load(teacher, tokenizer)
    if not teacher.experts:
        return loaded
    members, weights, is_dynamic = [loaded], [teacher.weight], False
    for expert in teacher.experts:
        is_dynamic |= expert.weight == "dynamic"
        weight = 1.0 if expert.weight == "dynamic" else expert.weight
        members.append(load(expert, tokenizer_of(expert)))
        weights.append(weight)
        if expert.base is not None:
            base = _base_of(expert, expert.base)
            members.append(load(base, tokenizer_of(base)))
            weights.append(-weight)
    if is_dynamic:
        dynamic = DynamicFusion(teacher.largest_dynamic_weight, teacher.dynamic_weight_increment)
        return FusedTeacher(members, dynamic)
    return FusedTeacher(members, FixedFusion(tuple(weights)))


def refuse_wrong_reference(reference: ReferenceConfig, targets: Sequence[TargetRule]) -> None:
    """Refuse a reference that no phase's target looks at, and one that is not what a target looks at."""
    if all(target.needs is None for target in targets) and reference != ReferenceConfig():
        raise ConfigurationError(
            f"there is a [reference], but the target {targets[0]} compares with none. Drop it, or set target.name to "
            f"one that does: {', '.join(name for name, member in TARGETS.items() if member.needs is not None)}."
        )
    if reference.path is not None and reference.refresh_every:
        raise ConfigurationError(
            f"reference.path is {reference.path!r} and reference.refresh_every {reference.refresh_every}; what is "
            "refreshed is a copy of the student. Drop one of the two."
        )
    for target in targets:
        if target.needs == "past" and not reference.refresh_every:
            raise ConfigurationError(
                f"the target {target} looks at the student as it was, but reference.refresh_every is 0. Set it to a "
                "number of steps, such as an epoch's."
            )


def refuse_unknown_teachers(problems: Sequence[Problem], known: Mapping[str, Any], column: str) -> None:
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
