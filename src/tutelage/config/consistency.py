"""Which keys of a run file contradict one another?  Rules about settings; what parts of a method need is elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from tutelage.config.model_sections import ReferenceConfig, StudentConfig
from tutelage.config.schema import RunConfig
from tutelage.errors import ConfigurationError
from tutelage.evaluation import GREEDY_SUFFIX, EvaluationResult
from tutelage.models import ALL_WEIGHTS, base_of, check_quantization, check_unquantised
from tutelage.rollout import address_of
from tutelage.runtime import LocalRuntime
from tutelage.targets import TARGETS
from tutelage.tasks import DEFAULT_PRIVILEGED_TEMPLATE, short_name
from tutelage.training import Phase, Recipe, check_method_form

__all__ = ["check_addresses", "check_consistency", "check_reference", "check_runtime"]


def check_addresses(config: RunConfig) -> None:
    """Refuse servers' addresses that are none."""
    for address, key in ((config.teacher.server, "teacher.server"), (config.vllm.server, "vllm.server")):
        if address is not None:
            address_of(address, key)


def check_runtime(config: RunConfig, *, is_shared: bool) -> None:
    """Refuse what cannot be shared out among processes."""
    settings, rollout = config.runtime, config.rollout
    teacher = config.teacher
    if settings.shard_teacher and (teacher.experts or teacher.routes or teacher.is_student or rollout.compile):
        raise ConfigurationError(
            "runtime.shard_teacher is true, which works for a single teacher with weights of its own that decodes "
            "uncompiled; there are teacher.experts, teacher.routes, teacher.weights or rollout.compile. Drop these, or "
            "runtime.shard_teacher."
        )
    learns_apart = config.student.what_learns != ALL_WEIGHTS
    if is_shared and settings.strategy == "fsdp2" and (learns_apart or settings.compile):
        key = config.student.key_of_what_learns if learns_apart else "runtime.compile"
        raise ConfigurationError(
            f"runtime.strategy is 'fsdp2', which shares out all weights of a student that learns as a whole, and {key} "
            f"is set. Use runtime.strategy = 'ddp', or drop {key}."
        )
    if is_shared and rollout.engine != "paired" and config.vllm.server is None:
        raise ConfigurationError(
            f"rollout.engine is {rollout.engine!r}, and there are several processes; a sampler that is started here "
            "draws for one. Give all of them a server (vllm.server), or use rollout.engine = 'paired'."
        )


def check_consistency(config: RunConfig, phases: Sequence[Phase]) -> None:
    """Refuse what two keys of a run file cannot both ask for."""
    _check_student(config.student, config.runtime.autocast, LocalRuntime(config.runtime.device).device)
    _check_own_teacher(config)
    if config.evaluation.sets:
        _check_judgeable(config)
    if config.rollout.redraws and not config.reward:
        raise ConfigurationError(
            f"rollout.redraws is {config.rollout.redraws}, but answers have no [[reward]] that could be the same for "
            'all answers to a prompt. Add one, such as [[reward]] name = "correct", or drop it.'
        )
    if config.rollout.redraws and config.rollout.samples_per_prompt < 2:
        raise ConfigurationError(
            f"rollout.redraws is {config.rollout.redraws}, but rollout.samples_per_prompt is 1, and one answer alone "
            "has no spread. Raise it, or drop rollout.redraws."
        )
    for recipe in [phase.recipe for phase in phases]:
        check_method_form(config.runtime.loss, recipe)
        if not recipe.asks_whole_teacher and config.rollout.support_size < recipe.top_k:
            raise ConfigurationError(
                f"rollout.support_size is {config.rollout.support_size}, but the loss looks at divergence.top_k = "
                f"{recipe.top_k} tokens. Set rollout.support_size to at least that."
            )


def check_reference(reference: ReferenceConfig, recipes: Sequence[Recipe]) -> None:
    """Refuse a reference that no phase compares with, and one that cannot move as it is asked to."""
    if not any(recipe.compares_with_reference for recipe in recipes) and reference != ReferenceConfig():
        raise ConfigurationError(
            f"there is a [reference], but the target {recipes[0].target} compares with none, nor does a loss or an "
            "advantage. Drop it, or take one that does: target.name = "
            f"{' or '.join(name for name, member in TARGETS.items() if member.needs)}, the loss sampled_kl with "
            "to = 'reference', the advantage whitened_return with a kl_coefficient."
        )
    if reference.path is not None and reference.refresh_every:
        raise ConfigurationError(
            f"reference.path is {reference.path!r} and reference.refresh_every {reference.refresh_every}; what is "
            "refreshed is a copy of the student. Drop one of the two."
        )
    reference.check_share("reference")


def _check_student(student: StudentConfig, autocast: str | None, device: str) -> None:
    """Refuse a student that could not learn as its table says, before anything is loaded."""
    if student.what_learns != ALL_WEIGHTS and base_of(student.path) is not None:
        key = student.key_of_what_learns
        raise ConfigurationError(
            f"student.path {student.path!r} is an adapter, which then learns, and [{key}] asks for something else. "
            f"Drop [{key}] to train the first one on, or merge it: tutelage export {student.path} --output DIR"
        )
    if student.dtype == "float16" and student.learns_whole:
        raise ConfigurationError(
            "student.dtype is 'float16', in which small numbers such as optimizer.epsilon are 0 and updates become "
            "NaN. Set student.dtype = 'bfloat16', or 'float32' with runtime.autocast = 'bfloat16'."
        )
    base = base_of(student.path)
    check_unquantised(student.path, None if base is None else base.path)
    if student.quantization is not None:
        check_quantization(student.quantization, device)
    if autocast is not None and student.learns_whole and student.dtype != "float32":
        raise ConfigurationError(
            f"runtime.autocast is {autocast!r} and student.dtype {student.dtype!r}; autocast is for weights that stay "
            "in float32. Set student.dtype = 'float32', or drop runtime.autocast."
        )


def _check_own_teacher(config: RunConfig) -> None:
    """Refuse what only a teacher reads where there is none, and a student as teacher that knows no more than itself."""
    data, teacher = config.data, config.teacher
    privileged = [key for key in ("privileged_column", "teacher_prompt_column") if getattr(data, key) is not None]
    if privileged and not config.has_teacher:
        raise ConfigurationError(
            f"data.{privileged[0]} is set, which a teacher reads, and the run has none. Name one, such as the student "
            "itself (teacher.weights = 'student'), or drop it."
        )
    if data.privileged_column is None and data.privileged_template != DEFAULT_PRIVILEGED_TEMPLATE:
        raise ConfigurationError(
            "data.privileged_template is set, and data.privileged_column names no text to put into it. Set it, or drop "
            "the template."
        )
    if not teacher.is_student:
        return
    if not data.differs_for_teacher:
        raise ConfigurationError(
            "teacher.weights is 'student', and the teacher reads what the student reads, so there would be nothing to "
            'learn. Let it read more: data.privileged_column = "solution", or data.teacher_system_prompt.'
        )
    if teacher.refresh_every and config.reference.refresh_every:
        raise ConfigurationError(
            f"teacher.refresh_every is {teacher.refresh_every} and reference.refresh_every "
            f"{config.reference.refresh_every}; one model at most follows the student. Set one of them to 0."
        )


def _check_judgeable(config: RunConfig) -> None:
    """Refuse evaluations that cannot be judged, or of which the best could not be found."""
    if not config.data.verifier:
        raise ConfigurationError(
            "data.verifier is empty, but evaluation.sets asks for answers to be judged. Set data.verifier = 'math'."
        )
    reported = [item.name for item in fields(EvaluationResult) if item.type in ("int", "float")]
    if config.checkpoint.best_metric not in reported:
        raise ConfigurationError(
            f"checkpoint.best_metric is {config.checkpoint.best_metric!r}; evaluations report {', '.join(reported)}. "
            "Choose one of these."
        )
    if config.evaluation.teacher_reads and (not config.has_teacher or config.teacher.routes):
        found = "several teachers, of which a problem names none" if config.has_teacher else "no teacher"
        raise ConfigurationError(
            f"evaluation.teacher_reads is true, and there is {found}. Name one teacher, or drop "
            "evaluation.teacher_reads."
        )
    names = [item.name or short_name(item.path) for item in config.evaluation.sets]
    taken = [name for name in names if config.evaluation.greedy and name + GREEDY_SUFFIX in names]
    if taken:
        raise ConfigurationError(
            f"evaluation.greedy is true, and two sets are called {taken[0]!r} and {taken[0] + GREEDY_SUFFIX!r}; the "
            "second is where greedy answers to the first are filed. Give the second another `name`."
        )
