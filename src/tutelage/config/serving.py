"""What runs in vLLM: the student's own rollouts, or the teacher as a server; what neither can do, and first checks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tutelage.config.schema import RunConfig
from tutelage.errors import ConfigurationError
from tutelage.models import PROBE_TEXT, LanguageModel, Vocabulary
from tutelage.rollout import (
    LocalVLLM,
    PairedEngine,
    ServedModel,
    ServedTeacher,
    ServedVLLM,
    Server,
    VLLMEngine,
)
from tutelage.runtime import LocalRuntime
from tutelage.training import Phase
from tutelage.types import Prompt

__all__ = [
    "check_servers",
    "check_student_server",
    "check_teacher_server",
    "make_served_student",
    "make_served_teacher",
    "make_student_engine",
]


def make_student_engine(
    config: RunConfig, student: LanguageModel, vocabulary: Vocabulary, runtime: LocalRuntime
) -> VLLMEngine:
    """The engine that takes over where the student is alone; vLLM itself starts when it first does.

    Raises:
      ConfigurationError: there are several processes, each of which would start a vLLM.
    """
    settings = config.vllm
    if settings.server is None and not runtime.is_alone:
        raise ConfigurationError(
            "rollout.engine is 'vllm', and there are several processes; a vLLM that is started here draws for one. "
            "Give all of them a server (vllm.server), or use rollout.engine = 'paired'."
        )
    sampler: LocalVLLM | ServedVLLM
    if settings.server is None:
        sampler = LocalVLLM(
            dtype=settings.dtype,
            max_tokens=config.data.max_prompt_tokens + config.max_answer_tokens,
            memory_share=settings.memory_share,
            max_rows=config.rollout.max_rows,
            on_cpu=student.device.type == "cpu",
            options=settings.options or {},
        )
        if student.context_length is not None:
            sampler.max_tokens = min(sampler.max_tokens, student.context_length)
    else:
        sampler = make_served_student(config)
    return VLLMEngine(
        student,
        vocabulary,
        sampler,
        settings=settings,
        support_size=config.rollout.support_size,
        score_tokens=config.rollout.score_tokens,
        syncs_weights=runtime.is_first,
    )


def make_served_student(config: RunConfig) -> ServedVLLM:
    """The server that draws the student's answers."""
    settings = config.vllm
    assert settings.server is not None
    return ServedVLLM(
        Server(settings.server, settings.timeout_seconds, settings.retries, config.rollout.max_rows, "vllm.server")
    )


def make_served_teacher(
    config: RunConfig, phases: Sequence[Phase], vocabulary: Vocabulary, num_rows: int
) -> ServedTeacher:
    """The teacher that runs elsewhere; `num_rows`: of its embedding table, by its configuration here."""
    teacher = config.teacher
    assert teacher.server is not None
    server = Server(teacher.server, teacher.timeout_seconds, teacher.retries, config.rollout.max_rows, "teacher.server")
    return ServedTeacher(server, vocabulary, max(phase.recipe.divergence.top_k for phase in phases), num_rows)


def check_servers(config: RunConfig, engine: PairedEngine, prompts: Sequence[Prompt], teacher_tokenizer: Any) -> None:
    """Ask the servers of a run, before anything is computed, whether they are there and are what they should be.

    Raises:
      ServerError: see `ServedTeacher.check` and `ServedVLLM.check`.
    """
    if engine.served_teacher is not None:
        check_teacher_server(config, engine.served_teacher, prompts, teacher_tokenizer)
    if engine.student_engine is not None and isinstance(engine.student_engine.sampler, ServedVLLM):
        check_student_server(config, engine.student_engine.sampler, prompts)


def check_teacher_server(
    config: RunConfig, served: ServedTeacher, prompts: Sequence[Prompt], tokenizer: Any
) -> ServedModel:
    """See `ServedTeacher.check`."""
    longest = max((prompt.teacher_tokens or prompt.student_tokens for prompt in prompts), key=len)
    probe = PROBE_TEXT, list(tokenizer(PROBE_TEXT, add_special_tokens=False)["input_ids"])
    return served.check(longest, len(longest) + config.rollout.max_new_tokens, probe)


def check_student_server(config: RunConfig, served: ServedVLLM, prompts: Sequence[Prompt]) -> ServedModel:
    """See `ServedVLLM.check`."""
    longest = max((prompt.student_tokens for prompt in prompts), key=len)
    return served.check(longest, len(longest) + config.max_answer_tokens)
