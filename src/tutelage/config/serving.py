"""Parts that compute elsewhere: a sampler of the student's answers, or the teacher as a server; and checks of both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tutelage.config.schema import RunConfig
from tutelage.models import PROBE_TEXT, LanguageModel, ModelSet, Vocabulary
from tutelage.rollout import SAMPLERS, Capacity, HostedEngine, Limits, Sampler, ServedModel, ServedScorer, Server
from tutelage.runtime import LocalRuntime
from tutelage.training import Phase
from tutelage.types import Prompt

__all__ = [
    "check_sampler",
    "check_teacher_server",
    "limits_of",
    "make_hosted_engine",
    "make_sampler",
    "make_served_scorer",
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


def make_served_scorer(
    config: RunConfig, phases: Sequence[Phase], vocabulary: Vocabulary, num_rows: int
) -> ServedScorer:
    """The teacher that runs elsewhere; `num_rows`: of its embedding table, by its configuration here."""
    teacher = config.teacher
    assert teacher.server is not None
    server = Server(teacher.server, teacher.timeout_seconds, teacher.retries, config.rollout.max_rows, "teacher.server")
    return ServedScorer(server, vocabulary, max(phase.recipe.top_k for phase in phases), num_rows)


def check_teacher_server(
    config: RunConfig, served: ServedScorer, prompts: Sequence[Prompt], tokenizer: Any
) -> ServedModel:
    """See `ServedScorer.check`."""
    longest = max((prompt.teacher_tokens or prompt.student_tokens for prompt in prompts), key=len)
    probe = PROBE_TEXT, list(tokenizer(PROBE_TEXT, add_special_tokens=False)["input_ids"])
    return served.check(longest, len(longest) + config.rollout.max_new_tokens, probe)


def check_sampler(config: RunConfig, sampler: Sampler, prompts: Sequence[Prompt]) -> ServedModel | None:
    """See `Sampler.check`."""
    longest = max((prompt.student_tokens for prompt in prompts), key=len)
    return sampler.check(longest, len(longest) + config.max_answer_tokens)
