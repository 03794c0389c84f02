"""Do scores that were written earlier fit a run?  What they depend on, and the refusal if any of it has changed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tutelage.config.clock import DATE
from tutelage.config.fingerprints import differences
from tutelage.config.model_sections import ModelConfig
from tutelage.config.models import EXPERT, ROUTE, context_length, other_models
from tutelage.config.schema import RunConfig
from tutelage.config.tokenizers import Tokenizers
from tutelage.errors import ConfigurationError, DataError
from tutelage.models import Vocabulary, tokenizer_fingerprint, weights_fingerprint
from tutelage.rollout import OfflineEngine, ScoreCache
from tutelage.tasks import PromptReader, TemplateClock
from tutelage.training import Recipe
from tutelage.types import Prompt

__all__ = ["offline_answers", "score_key"]


def score_key(config: RunConfig, tokenizers: Tokenizers, vocabulary: Vocabulary) -> dict[str, Any]:
    """All that a teacher's scores of given tokens depend on, as JSON has it.

    Args:
      config: with the date that chat templates asked for, if they did; see `clock.with_asked_date`.
      vocabulary: what the student and all teachers share.
    """
    own, others = config.teacher, dict(other_models(config))
    weights = {"model": _identity(own)}
    for place, expert in enumerate(own.experts):
        known_base = others.get(f"{EXPERT}[{place}].base")
        base = None if known_base is None else weights_fingerprint(known_base.source)
        weights[f"experts[{place}]"] = _identity(expert) | {"weight": expert.weight, "base": base}
    if own.experts:
        weights["fusion"] = {
            "weight": own.weight,
            "largest_dynamic_weight": own.largest_dynamic_weight,
            "dynamic_weight_increment": own.dynamic_weight_increment,
        }
    weights |= {f"routes.{name}": _identity(model) for name, model in own.routes.items()}
    style, clock = config.data.style, TemplateClock()
    teachers = {"teacher": tokenizers.teacher, **{ROUTE + name: each for name, each in tokenizers.routes.items()}}
    key = {
        "teacher": weights,
        "tokenizer": tokenizer_fingerprint(tokenizers.student),
        "stop_ids": {"emitted": vocabulary.stop_id, "all": sorted(vocabulary.stop_ids)},
        "vocabulary": {"size": vocabulary.size, "padding_ids": len(vocabulary.padding_ids)},
        "template": {
            "student": _template(style.student_reader(tokenizers.student, clock)),
            **{key: _template(style.teacher_reader(tokenizer, clock)) for key, tokenizer in teachers.items()},
            **({} if config.data.template_date is None else {DATE: config.data.template_date}),
        },
    }
    as_json: dict[str, Any] = json.loads(json.dumps(key, default=str))
    return as_json


def _identity(model: ModelConfig) -> dict[str, Any]:
    return {
        "weights": weights_fingerprint(model.source),
        "dtype": model.dtype,
    }


def _template(reader: PromptReader) -> dict[str, Any]:
    """What decides how a prompt is rendered."""
    return {
        "chat_template": None if reader.use_chat_template is False else reader.tokenizer.chat_template,
        "chat_template_kwargs": reader.chat_template_kwargs,
        "system_prompt": reader.system_prompt,
    }


def offline_answers(
    config: RunConfig, recipes: Sequence[Recipe], prompts: Sequence[Prompt], key: Callable[[], Mapping[str, Any]]
) -> OfflineEngine | None:
    """The scored answers that the recipes with the policy 'offline' learn from; None where there is no such recipe.

    Args:
      key: makes the run's own `score_key`.
    Raises:
      ConfigurationError, DataError: there are none, they do not fit the run, or some cannot be read.
    """
    recipes = [recipe for recipe in recipes if recipe.policy.is_offline]
    if not recipes:
        return None
    if config.data.scores is None:
        raise ConfigurationError(
            "the policy is 'offline', but data.scores names no folder with answers. Write one with `tutelage score`, "
            "and set data.scores to it."
        )
    cache = ScoreCache(Path(config.data.scores))
    manifest = cache.manifest
    changed = differences(key(), manifest["key"])
    if changed:
        raise DataError(
            f"data.scores: {cache.folder} was scored for another run ({'; '.join(changed)}); scores belong to one "
            "teacher, tokenizer, template and set of stop ids. Undo the change, or score the answers again: tutelage "
            "score RUN.toml --answers FILE --output NEW_FOLDER."
        )
    for recipe in recipes:
        if recipe.top_k > manifest["top_k"]:
            raise ConfigurationError(
                f"divergence.top_k is {recipe.top_k}, but {cache.folder} keeps the teacher's {manifest['top_k']} "
                "most probable tokens. Set it to at most that, or score again with a larger rollout.support_size."
            )
    offline = OfflineEngine.of(cache)
    offline.check_answered(prompts, config.rollout.samples_per_prompt)
    student = config.student
    limit = context_length(student)
    if limit is not None and offline.longest > limit:
        raise DataError(
            f"an answer in {cache.folder} has {offline.longest} tokens with its prompt, but the context of "
            f"{student.path!r} holds {limit}{limit.remark}. Score shorter answers, or choose another student."
        )
    return offline
