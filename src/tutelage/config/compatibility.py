"""What does not work together?  Rules about more than one key of a run file, with what to do about each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from tutelage.config.schema import ReferenceConfig, RunConfig, StudentConfig
from tutelage.errors import ConfigurationError
from tutelage.evaluation import GREEDY_SUFFIX, EvaluationResult
from tutelage.models import base_of, check_quantization, check_unquantised
from tutelage.rollout import address_of
from tutelage.runtime import LocalRuntime
from tutelage.targets import TARGETS, TargetRule
from tutelage.tasks import short_name
from tutelage.training import Phase, Recipe, check_method_form
from tutelage.types import Fact

__all__ = ["check_consistency", "check_recipe", "check_recipes", "check_runtime"]


def check_recipe(recipe: Recipe) -> None:
    """Refuse parts of a recipe that do not work together."""
    _check_imitated_tokens(recipe)
    _check_offline_recipe(recipe)


def check_recipes(config: RunConfig, recipes: Sequence[Recipe]) -> None:
    """Refuse recipes that ask for more than the models of a run offer."""
    _check_server_suffices(config, recipes)
    _check_reference_config(config.reference, [recipe.target for recipe in recipes])


def check_runtime(config: RunConfig, *, is_shared: bool) -> None:
    """Refuse what cannot be shared out among processes."""
    settings = config.runtime
    if settings.shard_teacher and (config.teacher.experts or config.teacher.routes or config.rollout.compile):
        raise ConfigurationError(
            "runtime.shard_teacher is true, which works for a single teacher that decodes uncompiled; there are "
            "teacher.experts, teacher.routes or rollout.compile. Drop these, or runtime.shard_teacher."
        )
    if is_shared and settings.strategy == "fsdp2" and (config.student.adapter or settings.compile):
        key = "student.adapter" if config.student.adapter else "runtime.compile"
        raise ConfigurationError(
            f"runtime.strategy is 'fsdp2', which shares out all weights of a student that learns as a whole, and {key} "
            f"is set. Use runtime.strategy = 'ddp', or drop {key}."
        )


def check_consistency(config: RunConfig, phases: Sequence[Phase]) -> None:
    """Refuse what two keys of a run file cannot both ask for."""
    _check_student_config(config.student, config.runtime.autocast, LocalRuntime(config.runtime.device).device)
    if config.evaluation.sets:
        _check_judgeable(config)
    for phase in phases:
        recipe = phase.recipe
        check_method_form(config.runtime.loss, recipe)
        if not recipe.asks_whole_teacher and config.rollout.support_size < recipe.top_k:
            raise ConfigurationError(
                f"rollout.support_size is {config.rollout.support_size}, but the loss looks at divergence.top_k = "
                f"{recipe.top_k} tokens. Set rollout.support_size to at least that."
            )
        if config.rollout.samples_per_prompt < recipe.min_samples_per_prompt:
            raise ConfigurationError(
                f"rollout.samples_per_prompt is {config.rollout.samples_per_prompt}, but the loss compares "
                f"answers to one prompt. Set it to at least {recipe.min_samples_per_prompt}."
            )


def _check_imitated_tokens(recipe: Recipe) -> None:
    """Refuse to imitate sampled tokens in which the teacher had no say: their mean gradient is 0."""
    if recipe.policy.needs_teacher or recipe.policy.is_offline:
        return
    for loss in recipe.losses:
        if Fact.teacher_drawn in loss.needs:
            raise ConfigurationError(
                f"the loss {type(loss).__name__} imitates the sampled tokens, but the policy {recipe.policy} draws "
                "them without the teacher, so there is nothing to learn from them. Set policy = 'teacher'."
            )


def _check_offline_recipe(recipe: Recipe) -> None:
    """Refuse what asks more of given answers than is known: who sampled them, and what the student thought of them."""
    if not recipe.policy.is_offline:
        return
    remedy = "Use divergence.support = 'teacher_top_k' with a divergence such as forward_kl, or sampled_nll."
    for loss in recipe.losses:
        if Fact.behaviour_token in loss.needs:
            raise ConfigurationError(
                f"the loss {type(loss).__name__} weighs tokens by the probability that they were sampled with, but "
                f"the policy is 'offline', and that probability is not known. {remedy}"
            )
    support = next((window.name for window in recipe.windows if window.name != "teacher_top_k"), None)
    if support is not None:
        raise ConfigurationError(
            f"divergence.support is {support!r}, but the policy is 'offline', and the teacher wrote down "
            f"its own most probable tokens. {remedy}"
        )
    if recipe.weighting.needs:
        raise ConfigurationError(
            f"the weighting {recipe.weighting} compares student and teacher at the rollout, but the policy is "
            "'offline', and the student was not asked. Use weighting = 'uniform' or 'position_decay'."
        )
    if recipe.target.needs:
        raise ConfigurationError(
            f"the target {recipe.target} compares with a third model, which has not read the answers that the policy "
            "'offline' takes. Use target = 'teacher', 'bridge' or 'proximal'."
        )


def _check_server_suffices(config: RunConfig, recipes: Sequence[Recipe]) -> None:
    """Refuse what needs more of the teacher than a server tells, its own top K at each place of finished answers.

    Addresses that are none are refused first.
    """
    for address, key in ((config.teacher.server, "teacher.server"), (config.vllm.server, "vllm.server")):
        if address is not None:
            address_of(address, key)
    if config.teacher.server is None:
        return
    for recipe in recipes:
        if recipe.policy.needs_teacher:
            raise ConfigurationError(
                f"teacher.server is set, but the policy {recipe.policy} asks the teacher at every token, and a server "
                "reads finished answers only. Load the teacher here (leave teacher.server out), or set policy = "
                "'student'."
            )
        support = next((window.name for window in recipe.windows if window.name != "teacher_top_k"), None)
        if support is not None:
            raise ConfigurationError(
                f"divergence.support is {support!r}, but a teacher server tells nothing but its own "
                "most probable tokens. Set divergence.support = 'teacher_top_k', or leave teacher.server out."
            )
        if Fact.teacher_support in recipe.weighting.needs:
            raise ConfigurationError(
                f"the weighting {recipe.weighting} compares both models on the student's most probable tokens, which a "
                "teacher server does not tell. Set weighting = 'uniform', or leave teacher.server out."
            )


def _check_student_config(student: StudentConfig, autocast: str | None, device: str) -> None:
    """Refuse a student that could not learn as its table says, before anything is loaded."""
    if student.adapter is not None and base_of(student.path) is not None:
        raise ConfigurationError(
            f"student.path {student.path!r} is an adapter, and [student.adapter] asks for a second one. Drop "
            f"[student.adapter] to train the first one on, or merge it: tutelage export {student.path} --output DIR"
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


def _check_reference_config(reference: ReferenceConfig, targets: Sequence[TargetRule]) -> None:
    """Refuse a reference that no phase's target looks at, and one that is not what a target looks at."""
    if not any(target.needs for target in targets) and reference != ReferenceConfig():
        raise ConfigurationError(
            f"there is a [reference], but the target {targets[0]} compares with none. Drop it, or set target.name to "
            f"one that does: {', '.join(name for name, member in TARGETS.items() if member.needs)}."
        )
    if reference.path is not None and reference.refresh_every:
        raise ConfigurationError(
            f"reference.path is {reference.path!r} and reference.refresh_every {reference.refresh_every}; what is "
            "refreshed is a copy of the student. Drop one of the two."
        )
    if reference.share < 1 and not reference.refresh_every:
        raise ConfigurationError(
            f"reference.share is {reference.share:g}, but reference.refresh_every is 0, so the reference never moves. "
            "Set reference.refresh_every to a number of steps, such as 1, or drop reference.share."
        )
    for target in targets:
        if Fact.moving_reference in target.needs and not reference.refresh_every:
            raise ConfigurationError(
                f"the target {target} looks at the student as it was, but reference.refresh_every is 0. Set it to a "
                "number of steps, such as an epoch's."
            )


def _check_judgeable(config: RunConfig) -> None:
    """Refuse evaluations that nothing can judge, or whose best one nothing could tell."""
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
    names = [item.name or short_name(item.path) for item in config.evaluation.sets]
    taken = [name for name in names if config.evaluation.greedy and name + GREEDY_SUFFIX in names]
    if taken:
        raise ConfigurationError(
            f"evaluation.greedy is true, and two sets are called {taken[0]!r} and {taken[0] + GREEDY_SUFFIX!r}; the "
            "second is where greedy answers to the first are filed. Give the second another `name`."
        )
