"""Do scores that were written earlier fit a run?  What they depend on, and the refusal if any of it is another."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tutelage.config.clock import DATE
from tutelage.config.fingerprints import differences, fingerprint_of
from tutelage.config.models import context_length, load_meta_model, load_route_tokenizers, meta_teacher
from tutelage.config.schema import DataConfig, ModelConfig, RunConfig
from tutelage.errors import ConfigurationError, DataError
from tutelage.models import Vocabulary, align, tokenizer_fingerprint, weights_fingerprint
from tutelage.rollout import OfflineAnswers, ScoreCache
from tutelage.training import Phase, Recipe
from tutelage.types import Prompt

__all__ = ["check_offline_recipe", "offline_answers", "score_key", "shared_vocabulary"]


def shared_vocabulary(config: RunConfig, tokenizers: tuple[Any, Any]) -> Vocabulary:
    """What student and teachers share, from their meta models."""
    student, teacher = tokenizers
    routes = load_route_tokenizers(config)
    return align(
        load_meta_model(config.student, student),
        meta_teacher(config.teacher, teacher),
        *(load_meta_model(model, routes[name]) for name, model in config.teacher.routes.items()),
    )


def score_key(config: RunConfig, tokenizers: tuple[Any, Any], vocabulary: Vocabulary) -> dict[str, Any]:
    """All that a teacher's scores of given tokens depend on, as JSON has it.

    The configuration has the date that chat templates asked for, if they did; see `clock.with_asked_date`.
    """
    student, teacher = tokenizers
    own = config.teacher
    weights = {"model": _identity(own)}
    for place, expert in enumerate(own.experts):
        base = None if expert.base is None else weights_fingerprint(expert.base, allow_pickle=expert.allow_pickle)
        weights[f"experts[{place}]"] = _identity(expert) | {"weight": expert.weight, "base": base}
    if own.experts:
        weights["fusion"] = {
            "weight": own.weight,
            "largest_dynamic_weight": own.largest_dynamic_weight,
            "dynamic_weight_increment": own.dynamic_weight_increment,
        }
    weights |= {f"routes.{name}": _identity(model) for name, model in own.routes.items()}
    routes = {f"teacher.routes.{name}": read for name, read in load_route_tokenizers(config).items()}
    key = {
        "teacher": weights,
        "tokenizer": tokenizer_fingerprint(student),
        "stop_ids": {"emitted": vocabulary.stop_id, "all": sorted(vocabulary.stop_ids)},
        "vocabulary": {"size": vocabulary.size, "padding_ids": len(vocabulary.padding_ids)},
        "template": {
            "student": _template(config.data, student, is_teacher=False),
            "teacher": _template(config.data, teacher, is_teacher=True),
            **{name: _template(config.data, read, is_teacher=True) for name, read in routes.items()},
            **({} if config.data.template_date is None else {DATE: config.data.template_date}),
        },
    }
    as_json: dict[str, Any] = json.loads(json.dumps(key, default=str))
    return as_json


def _identity(model: ModelConfig) -> dict[str, Any]:
    return {
        "weights": fingerprint_of(model),
        "dtype": model.dtype,
    }


def _template(data: DataConfig, tokenizer: Any, *, is_teacher: bool) -> dict[str, Any]:
    """How a side is asked; see `tasks.render_all`."""
    system, keywords = data.system_prompt or None, data.chat_template_kwargs
    if is_teacher and data.teacher_system_prompt is not None:
        system = data.teacher_system_prompt
    if is_teacher and data.teacher_chat_template_kwargs is not None:
        keywords = data.teacher_chat_template_kwargs
    return {
        "chat_template": None if data.use_chat_template is False else tokenizer.chat_template,
        "chat_template_kwargs": keywords,
        "system_prompt": system,
    }


def offline_answers(
    config: RunConfig, phases: Sequence[Phase], prompts: Sequence[Prompt], tokenizers: tuple[Any, Any]
) -> OfflineAnswers | None:
    """The scored answers that the phases with the policy 'offline' learn from; None where there is no such phase.

    Raises:
      ConfigurationError, DataError: there are none, they do not fit the run, or some cannot be read.
    """
    recipes = [phase.recipe for phase in phases if phase.recipe.policy.is_offline]
    if not recipes:
        return None
    if config.data.scores is None:
        raise ConfigurationError(
            "the policy is 'offline', but data.scores names no folder with answers. Write one with `tutelage score`, "
            "and set data.scores to it."
        )
    cache = ScoreCache(Path(config.data.scores))
    manifest = cache.manifest
    changed = differences(score_key(config, tokenizers, shared_vocabulary(config, tokenizers)), manifest["key"])
    if changed:
        raise DataError(
            f"data.scores: {cache.folder} was scored for another run ({'; '.join(changed)}); scores belong to one "
            "teacher, tokenizer, template and set of stop ids. Undo the change, or score the answers again: tutelage "
            "score RUN.toml --answers FILE --output NEW_FOLDER."
        )
    for divergence in [recipe.divergence for recipe in recipes]:
        if divergence.top_k > manifest["top_k"]:
            raise ConfigurationError(
                f"divergence.top_k is {divergence.top_k}, but {cache.folder} keeps the teacher's {manifest['top_k']} "
                "most probable tokens. Set it to at most that, or score again with a larger rollout.support_size."
            )
    offline = OfflineAnswers.of(cache)
    offline.check_answered(prompts, config.rollout.samples_per_prompt)
    student = config.student
    limit = context_length(student)
    if limit is not None and offline.longest > limit:
        raise DataError(
            f"an answer in {cache.folder} has {offline.longest} tokens with its prompt, but the context of "
            f"{student.path!r} holds {limit}{limit.remark}. Score shorter answers, or choose another student."
        )
    return offline


def check_offline_recipe(recipe: Recipe) -> None:
    """Refuse what asks more of given answers than is known: who sampled them, and what the student thought of them."""
    if not recipe.policy.is_offline:
        return
    divergence = recipe.divergence
    remedy = "Use divergence.support = 'teacher_top_k' with a divergence such as forward_kl, or sampled_nll."
    if divergence.needs_rollouts and not divergence.imitates_tokens:
        raise ConfigurationError(
            f"the divergence {type(divergence).__name__} weighs tokens by the probability that they were sampled with, "
            f"but the policy is 'offline', and nobody knows it. {remedy}"
        )
    if not divergence.imitates_tokens and divergence.support != "teacher_top_k":
        raise ConfigurationError(
            f"divergence.support is {divergence.support!r}, but the policy is 'offline', and the teacher wrote down "
            f"its own most probable tokens. {remedy}"
        )
    if recipe.weighting.asks_models:
        raise ConfigurationError(
            f"the weighting {recipe.weighting} compares student and teacher at the rollout, but the policy is "
            "'offline', and the student was not asked. Use weighting = 'uniform' or 'position_decay'."
        )
    if recipe.target.needs is not None:
        raise ConfigurationError(
            f"the target {recipe.target} compares with a third model, which has not read the answers that the policy "
            "'offline' takes. Use target = 'teacher', 'bridge' or 'proximal'."
        )
