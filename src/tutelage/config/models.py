"""Which models does a run have?  Further teachers, experts, a reference: what is loaded, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tutelage.config.schema import ModelConfig, ReferenceConfig, RunConfig, StudentConfig, TeacherConfig
from tutelage.errors import ConfigurationError
from tutelage.models import (
    DTYPES,
    AdapterSettings,
    ContextLength,
    DynamicFusion,
    FixedFusion,
    FusedTeacher,
    LanguageModel,
    base_of,
    check_learnable,
    check_quantization,
    check_unquantised,
    context_length_of,
    earlier_self,
    load_language_model,
    load_tokenizer,
    meta_model_of,
)
from tutelage.targets import TARGETS, TargetRule
from tutelage.tasks import Problem

__all__ = [
    "check_models",
    "context_length",
    "load_model",
    "load_meta_model",
    "load_route_tokenizers",
    "load_student",
    "load_teacher",
    "meta_teacher",
    "other_models",
    "check_teacher_names",
    "check_student_config",
    "check_reference_config",
    "named_teachers",
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


def named_teachers(config: RunConfig) -> list[tuple[str | None, ModelConfig]]:
    """The teacher, which has no name, and those that a row of the data may name."""
    return [(None, config.teacher), *config.teacher.routes.items()]


def context_length(model: ModelConfig) -> ContextLength | None:
    """Most tokens that a model reads as one, from its configuration alone; None = it does not say."""
    length = context_length_of(model.path, revision=model.revision, trust_remote_code=model.trust_remote_code)
    if length is not None and isinstance(model, TeacherConfig) and model.server is not None:
        return None if length.made_for is None else ContextLength(length.made_for, length.made_for)
    return length


def _base_of(expert: ModelConfig, path: str) -> ModelConfig:
    """An expert's base is loaded as the expert is; a revision is the expert's own."""
    kept = {name: getattr(expert, name) for name in ModelConfig.model_fields}
    return ModelConfig(**(kept | {"path": path, "revision": None}))


def tokenizer_of(model: ModelConfig) -> Any:
    """The tokenizer that comes with a model."""
    return load_tokenizer(model.path, revision=model.revision, trust_remote_code=model.trust_remote_code)


def load_route_tokenizers(config: RunConfig) -> dict[str, Any]:
    """The tokenizers of further teachers, whose chat templates may differ, by name."""
    return {name: tokenizer_of(model) for name, model in config.teacher.routes.items()}


def load_model(
    model: ModelConfig, tokenizer: Any, device: str, path: str | None = None, **learning: Any
) -> LanguageModel:
    """A model as its table says; `path` replaces its weights (a checkpoint), `learning` is what makes it a student."""
    return load_language_model(
        path or model.path,
        tokenizer,
        dtype=model.dtype,
        device=device,
        revision=None if path else model.revision,
        trust_remote_code=model.trust_remote_code,
        allow_pickle=model.allow_pickle,
        attention=model.attention,
        **learning,
    )


def load_student(
    config: RunConfig, tokenizer: Any, device: str, checkpoint: str | None = None
) -> tuple[LanguageModel, LanguageModel | None]:
    """The student as the run begins, or as a checkpoint has it, and its first self where that costs no second model.

    Raises:
      ConfigurationError: it cannot be computed as [runtime] and [rollout] say.
    """
    student, runtime = config.student, config.runtime
    learning: dict[str, Any] = {"adapter": student.adapter, "quantization": student.quantization, "seed": config.seed}
    if student.adapter is None and base_of(student.path) is None:
        model, first_self = load_model(student, tokenizer, device, checkpoint), None
    else:
        model = load_model(student, tokenizer, device, **learning)
        assert model.adapter is not None
        first_self = earlier_self(model)
        if checkpoint is not None:
            model.adapter.load(Path(checkpoint))
    if student.quantization is None:
        check_learnable(model.module, student.path)
    model.compile = config.rollout.compile
    model.autocast = None if runtime.autocast is None else DTYPES[runtime.autocast]
    model.checkpoints_gradient, model.compiles_update = runtime.gradient_checkpointing, runtime.compile
    model.check_settings()
    return model, first_self


def load_teacher(teacher: TeacherConfig, tokenizer: Any, device: str) -> LanguageModel:
    """The teacher, with its experts fused into it."""
    return _fused(teacher, tokenizer, lambda model, its_tokenizer: load_model(model, its_tokenizer, device))


def check_models(config: RunConfig, *, with_teacher: bool) -> None:
    """Refuse models whose files do not fit their configurations, before the weights of any are read."""
    is_read = with_teacher and config.teacher.server is None
    models = [config.student, *([config.teacher] if is_read else []), *(model for _, model in other_models(config))]
    for model in models:
        load_meta_model(model, None)


def load_meta_model(model: ModelConfig, tokenizer: Any, adapter: AdapterSettings | None = None) -> LanguageModel:
    """A model as its table says, without its weights; the files of a served teacher need not include any."""
    return meta_model_of(
        model.path,
        tokenizer,
        dtype=model.dtype,
        revision=model.revision,
        trust_remote_code=model.trust_remote_code,
        allow_pickle=model.allow_pickle,
        attention=model.attention,
        adapter=adapter,
        needs_weights=not (isinstance(model, TeacherConfig) and model.server is not None),
    )


def meta_teacher(teacher: TeacherConfig, tokenizer: Any) -> LanguageModel:
    """The teacher with its experts, without their weights."""
    return _fused(teacher, tokenizer, load_meta_model)


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


def check_student_config(student: StudentConfig, autocast: str | None, device: str) -> None:
    """Refuse a student that could not learn as its table says, before anything is loaded."""
    if student.adapter is not None and base_of(student.path) is not None:
        raise ConfigurationError(
            f"student.path {student.path!r} is an adapter, and [student.adapter] asks for a second one. Drop "
            f"[student.adapter] to train the first one on, or merge it: tutelage export {student.path} --output DIR"
        )
    if student.dtype == "float16" and student.adapter is None and base_of(student.path) is None:
        raise ConfigurationError(
            "student.dtype is 'float16', in which small numbers such as optimizer.epsilon are 0 and updates become "
            "NaN. Set student.dtype = 'bfloat16', or 'float32' with runtime.autocast = 'bfloat16'."
        )
    base = base_of(student.path)
    check_unquantised(student.path, None if base is None else base.path)
    if student.quantization is not None:
        check_quantization(student.quantization, device)
    if autocast is not None and student.adapter is None and student.dtype != "float32":
        raise ConfigurationError(
            f"runtime.autocast is {autocast!r} and student.dtype {student.dtype!r}; autocast is for weights that stay "
            "in float32. Set student.dtype = 'float32', or drop runtime.autocast."
        )


def check_reference_config(reference: ReferenceConfig, targets: Sequence[TargetRule]) -> None:
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
