"""Parts that compute elsewhere: a sampler of the student's answers, or a teacher as a server; and checks of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tutelage.config.models import key_of_teacher
from tutelage.config.schema import RunConfig
from tutelage.models import PROBE_TEXT, LanguageModel, ModelSet, Vocabulary
from tutelage.rollout import (
    SAMPLERS,
    Capacity,
    HostedEngine,
    Limits,
    LocalScorer,
    RoutedScorer,
    Sampler,
    Scorer,
    ServedModel,
    ServedScorer,
    Server,
    TopScorer,
)
from tutelage.runtime import LocalRuntime
from tutelage.training import Phase
from tutelage.types import Prompt

__all__ = [
    "check_sampler",
    "check_teacher_servers",
    "limits_of",
    "make_hosted_engine",
    "make_sampler",
    "make_scorer",
    "make_served_scorers",
]


def limits_of(config: RunConfig) -> Limits:
    """How much is computed at once."""
    rollout = config.rollout
    cache_bytes = None if rollout.cache_gib is None else int(rollout.cache_gib * 2**30)
    return Limits(rollout.max_rows, cache_bytes, rollout.score_tokens)


def make_hosted_engine(config: RunConfig, models: ModelSet, runtime: LocalRuntime) -> HostedEngine:
    """The engine of answers that the student draws alone; a sampler here starts when it is first needed."""
    return HostedEngine(
        models,
        make_sampler(config, models.student),
        config.vllm,
        support_size=config.rollout.support_size,
        limits=limits_of(config),
        from_first=runtime.from_first,
    )


def make_sampler(config: RunConfig, student: LanguageModel) -> Sampler:
    """What draws the student's answers where `rollout.engine` names a sampler."""
    max_tokens = config.data.max_prompt_tokens + config.max_answer_tokens
    if student.context_length is not None:
        max_tokens = min(max_tokens, student.context_length)
    capacity = Capacity(max_tokens, config.rollout.max_rows, student.device.type)
    return SAMPLERS[config.rollout.engine](config.vllm, capacity)


def make_served_scorers(
    config: RunConfig, phases: Sequence[Phase], vocabulary: Vocabulary, meta_models: Mapping[str, LanguageModel]
) -> dict[str | None, ServedScorer]:
    """The teachers that run elsewhere, by the name that prompts call them.

    Args:
      meta_models: by their keys in the run file; a server may name as many ids as the teacher's table has rows.
    """
    teacher, top_k = config.teacher, max(phase.recipe.top_k for phase in phases)
    made = {}
    for name, address in teacher.servers.items():
        key = key_of_teacher(name)
        server = Server(address, teacher.timeout_seconds, teacher.retries, config.rollout.max_rows, f"{key}.server")
        made[name] = ServedScorer(server, vocabulary, top_k, meta_models[key].padded_vocabulary_size)
    return made


def make_scorer(config: RunConfig, models: ModelSet, served: Mapping[str | None, ServedScorer]) -> Scorer:
    """What lets the teachers read finished answers, each those of its own prompts.

    Beside a server a teacher here says no more than servers do: its own top K.
    """
    max_tokens = config.rollout.score_tokens
    if not served:
        return LocalScorer(models.teachers, models.vocabulary, max_tokens)
    top_k = next(iter(served.values())).top_k
    here = TopScorer(models.teachers, models.vocabulary, max_tokens, top_k)
    return RoutedScorer({**dict.fromkeys(models.teachers, here), **served})


def check_teacher_servers(
    config: RunConfig,
    served: Mapping[str | None, ServedScorer],
    prompts: Sequence[Prompt],
    tokenizers: Mapping[str | None, Any],
) -> dict[str | None, ServedModel]:
    """See `ServedScorer.check`, once for each teacher that is a server and has prompts.

    Args:
      tokenizers: of the teachers, by the name that prompts call them.
    """
    found = {}
    for name, scorer in served.items():
        own = [prompt.tokens_for_teacher for prompt in prompts if prompt.teacher_name == name]
        if own:
            longest = max(own, key=len)
            probe = PROBE_TEXT, list(tokenizers[name](PROBE_TEXT, add_special_tokens=False)["input_ids"])
            found[name] = scorer.check(longest, len(longest) + config.rollout.max_new_tokens, probe)
    return found


def check_sampler(config: RunConfig, sampler: Sampler, prompts: Sequence[Prompt]) -> ServedModel | None:
    """See `Sampler.check`."""
    longest = max((prompt.student_tokens for prompt in prompts), key=len)
    return sampler.check(longest, len(longest) + config.max_answer_tokens)
