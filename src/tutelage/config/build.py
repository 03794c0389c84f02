"""From a checked configuration to the parts of a run, cheapest refusals first.

The order is the point: paths and numbers, then prompts and tokenizers, and only then gigabytes of weights. Nothing is
written before everything has been built.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from tutelage.config.clock import date_of_run, dated, template_clock, with_asked_date
from tutelage.config.fingerprints import Inputs, ModelHashes, data_inputs
from tutelage.config.load import settings_of, to_toml
from tutelage.config.models import (
    check_models,
    check_reference_config,
    check_student_config,
    load_meta_model,
    load_model,
    load_route_tokenizers,
    load_student,
    load_teacher,
    meta_teacher,
    other_models,
    tokenizer_of,
)
from tutelage.config.parts import part_from
from tutelage.config.phases import phase_tables
from tutelage.config.prompts import (
    build_evaluation_sets,
    check_lengths,
    check_prompt_lengths,
    read_prompts,
)
from tutelage.config.resuming import beginning_of, opened, recorded_inputs
from tutelage.config.schema import RunConfig
from tutelage.config.scores import check_offline_recipe, offline_answers
from tutelage.config.serving import (
    check_server_suffices,
    check_servers,
    make_served_teacher,
    make_student_engine,
)
from tutelage.divergences import DIVERGENCES
from tutelage.errors import CheckpointError, ConfigurationError
from tutelage.evaluation import GREEDY_SUFFIX, EvaluationResult, EvaluationSet
from tutelage.models import (
    LanguageModel,
    align,
    check_distinct,
    check_files,
    check_same_tokenizer,
    check_savable,
    load_tokenizer,
)
from tutelage.policies import POLICIES, Policy, Temperature
from tutelage.rollout import PairedEngine
from tutelage.runtime import LocalRuntime, Processes, runtime_for
from tutelage.targets import TARGETS
from tutelage.tasks import THINKING_OPENS, TruncatedAnswers, Verifier, check_verifier, short_name
from tutelage.training import (
    EvaluationPlan,
    Phase,
    PromptOrder,
    Recipe,
    Run,
    RunFolder,
    check_method_form,
    check_models_form,
    chosen_trackers,
    phase_at,
)
from tutelage.training.run_files import FINGERPRINTS
from tutelage.types import Rollout
from tutelage.weighting import WEIGHTINGS

__all__ = [
    "build_engine",
    "build_phases",
    "build_recipe",
    "build_run",
    "check_consistency",
    "decoder_of",
    "load_tokenizers",
    "make_verifier",
    "policy_at",
]

VerifyRollouts = Callable[[Sequence[Rollout], Sequence[str]], Sequence[bool]]

_MAX_OPENING_TOKENS = 8  # a template's "<think>" and what white space comes after it, in any tokenizer


def build_run(
    config: RunConfig, *, resume: bool = False, accept: Sequence[str] = (), processes: Processes | None = None
) -> Run:
    """Put a run together, or refuse it before any compute is spent. Nothing is written yet.

    Args:
      resume: continue the run in the output folder from its newest whole checkpoint.
      accept: names of `fingerprints.INPUTS` that may have changed since the run began.
      processes: those that share the run, see `runtime.joined`; None = this one is alone.
    Raises:
      OutputExistsError: the output folder exists and `resume` is False, or another process works in it.
      CheckpointError: `resume`, and there is no checkpoint that can be used.
      ConfigurationError: also where a run to be resumed would read something else than when it began.
      ConfigurationError, DataError, ModelError: one clear message each.
    """
    if accept and not resume:
        raise ConfigurationError(
            f"--accept {accept[0]} says what may have changed since a run began, and this one begins now. Add "
            "--resume, or drop it."
        )
    runtime = build_runtime(config, processes)
    folder = RunFolder(Path(config.output_folder), writes=runtime.is_first)
    try:
        return _put_together(config, runtime, folder, resume, accept)
    except BaseException:
        folder.release()
        raise


def _put_together(
    config: RunConfig, runtime: LocalRuntime, folder: RunFolder, resume: bool, accept: Sequence[str]
) -> Run:
    if resume:
        config = dated(config, runtime.from_first(lambda: date_of_run(folder.path)))
    checkpoint, messages = runtime.from_first(lambda: beginning_of(config, folder, resume))
    before, remarks = runtime.from_first(lambda: recorded_inputs(folder, resume))
    inputs = Inputs(runtime, before, accept)
    messages += remarks
    if checkpoint is not None and not checkpoint.is_dir():
        raise CheckpointError(
            f"--resume: {checkpoint} is not to be seen by this process. Put the output folder on a file system that "
            "all machines of the run share."
        )
    trackers = chosen_trackers(config.logging.trackers)
    phases = build_phases(config)
    check_consistency(config, phases)
    student_tokenizer, teacher_tokenizer = load_tokenizers(config)
    clock = runtime.from_first(lambda: template_clock(config.data))
    routes = load_route_tokenizers(config)
    prompts = read_prompts(config.data, student_tokenizer, teacher_tokenizer, routes, clock)
    sets = build_evaluation_sets(config.evaluation.sets, config.data, student_tokenizer, clock)
    config = with_asked_date(config, clock)
    offline = offline_answers(config, phases, prompts.prompts, (student_tokenizer, teacher_tokenizer))
    if offline is None and config.data.scores is not None:
        messages.append("data.scores is set, but no policy is 'offline', so nobody reads it")
    check_prompt_lengths(config, prompts.prompts)
    evaluation_tokens = config.evaluation.max_new_tokens or config.rollout.max_new_tokens
    for problems in sets:
        check_lengths(config.student, None, problems.prompts, evaluation_tokens, "evaluation.max_new_tokens")

    tokenizers = {"student": student_tokenizer, "teacher": teacher_tokenizer, **routes}
    inputs.add(data_inputs(config, prompts, sets, tokenizers))

    path = str(checkpoint) if checkpoint else None
    has_reference = any(phase.recipe.target.needs is not None for phase in phases)
    is_read = not all(phase.recipe.policy.is_offline for phase in phases)  # else all that the teacher says is on file
    hashes = ModelHashes(config, with_teacher=is_read)
    engine = build_engine(
        config,
        student_tokenizer,
        teacher_tokenizer,
        path,
        with_reference=has_reference,
        with_teacher=is_read,
        runtime=runtime,
    )
    engine.offline, models = offline, engine.models
    runtime.from_first(lambda: check_savable(models.student, models.vocabulary))
    if config.rollout.engine == "vllm":
        engine.student_engine = make_student_engine(config, models.student, models.vocabulary, runtime)
    check_servers(
        config, engine, prompts.prompts, teacher_tokenizer, max(config.rollout.max_new_tokens, evaluation_tokens)
    )
    # Refused now, if one answer at the limit does not fit into the caches, and not when the first step needs it.
    asks_teacher = any(phase.recipe.policy.needs_teacher for phase in phases)
    engine.rows_that_fit(prompts.prompts, config.rollout.max_new_tokens, with_teacher=asks_teacher)
    for phase in phases:
        check_models_form(config.runtime.loss, phase.recipe.divergence, models.student, list(models.teachers.values()))
    inputs.add(hashes.inputs(models.vocabulary))
    messages += [f"accepted, and noted in {folder.path / FINGERPRINTS}: {line}" for line in inputs.accepted]
    return Run(
        phases=phases,
        models=models,
        engine=engine,
        runtime=runtime,
        prompts=prompts.prompts,
        answers=prompts.answers,
        prompt_order=PromptOrder(
            len(prompts.prompts), config.rollout.prompts_per_step, config.data.shuffle, config.seed
        ),
        rollout=config.rollout,
        checkpoint=config.checkpoint,
        evaluation=_evaluation_plan(config, sets, evaluation_tokens),
        num_steps=config.steps,
        seed=config.seed,
        micro_batch_tokens=config.runtime.micro_batch_tokens,
        loss_form=config.runtime.loss,
        folder=folder,
        verify=(
            make_verifier(config.data.verifier, models.student, config.data.truncated_answers)
            if config.data.verifier
            else None
        ),
        decode=decoder_of(models.student),
        samples_per_log=config.logging.samples_per_log,
        steps_per_log=config.logging.steps_per_log,
        diagnostics_every=config.logging.diagnostics_every,
        trackers=trackers,
        name=config.name,
        project=config.logging.project,
        settings=settings_of(config),
        refresh_reference_every=config.reference.refresh_every,
        is_resumed=resume,
        resume_from=checkpoint,
        open_folder=lambda: opened(config, folder, inputs, checkpoint, resume),
        messages=messages,
    )


def _evaluation_plan(config: RunConfig, sets: Sequence[EvaluationSet], max_new_tokens: int) -> EvaluationPlan:
    evaluation = config.evaluation
    return EvaluationPlan(
        sets=sets,
        policy=Temperature(evaluation.temperature).at(0),
        every=evaluation.every,
        num_samples=evaluation.num_samples,
        temperature=evaluation.temperature,
        max_new_tokens=max_new_tokens,
        greedy_policy=Temperature(0.0).at(0) if evaluation.greedy else None,
    )


def build_runtime(config: RunConfig, processes: Processes | None) -> LocalRuntime:
    """Where the run runs; every process of it must have been given the same run file."""
    settings = config.runtime
    if settings.shard_teacher and (config.teacher.experts or config.teacher.routes or config.rollout.compile):
        raise ConfigurationError(
            "runtime.shard_teacher is true, which works for a single teacher that decodes uncompiled; there are "
            "teacher.experts, teacher.routes or rollout.compile. Drop these, or runtime.shard_teacher."
        )
    if processes is not None and settings.strategy == "fsdp2" and (config.student.adapter or settings.compile):
        key = "student.adapter" if config.student.adapter else "runtime.compile"
        raise ConfigurationError(
            f"runtime.strategy is 'fsdp2', which shares out all weights of a student that learns as a whole, and {key} "
            f"is set. Use runtime.strategy = 'ddp', or drop {key}."
        )
    runtime = runtime_for(
        processes,
        device=settings.device,
        strategy=settings.strategy,
        shard_teacher=settings.shard_teacher,
        timeout_seconds=settings.timeout_seconds,
    )
    runtime.check_equal("the run file", to_toml(config))
    if processes is not None and config.rollout.prompts_per_step < processes.size:
        warnings.warn(
            f"rollout.prompts_per_step is {config.rollout.prompts_per_step}, and there are {processes.size} processes: "
            "some have nothing to do. Raise it, or start fewer.",
            stacklevel=2,
        )
    return runtime


def check_consistency(config: RunConfig, phases: Sequence[Phase]) -> None:
    """Refuse what two keys of a run file cannot both ask for, and a verifier that does not work."""
    check_student_config(config.student, config.runtime.autocast, LocalRuntime(config.runtime.device).device)
    if config.data.verifier:
        check_verifier(config.data.verifier)
    if config.evaluation.sets:
        _check_judgeable(config)
    for phase in phases:
        check_method_form(config.runtime.loss, phase.recipe.divergence, phase.recipe.target)
    for divergence in [phase.recipe.divergence for phase in phases]:
        if not divergence.needs_full_target and config.rollout.support_size < divergence.top_k:
            raise ConfigurationError(
                f"rollout.support_size is {config.rollout.support_size}, but the loss looks at divergence.top_k = "
                f"{divergence.top_k} tokens. Set rollout.support_size to at least that."
            )
        if config.rollout.samples_per_prompt < divergence.min_samples_per_prompt:
            raise ConfigurationError(
                f"rollout.samples_per_prompt is {config.rollout.samples_per_prompt}, but the divergence compares "
                f"answers to one prompt. Set it to at least {divergence.min_samples_per_prompt}."
            )


def build_recipe(config: RunConfig) -> Recipe:
    """The method that a configuration names."""
    return Recipe(
        policy=part_from(config.policy, POLICIES, "policy"),
        target=part_from(config.target, TARGETS, "target"),
        divergence=part_from(config.divergence, DIVERGENCES, "divergence"),
        weighting=part_from(config.weighting, WEIGHTINGS, "weighting"),
    )


def build_phases(config: RunConfig) -> list[Phase]:
    """The recipes of a run, one after another; a run without phases is one."""
    phases = []
    for tables in phase_tables(config):
        try:
            recipe = build_recipe(tables.config)
            _check_imitated_tokens(recipe)
            check_offline_recipe(recipe)
        except ConfigurationError as problem:
            if tables.name is None:
                raise
            raise ConfigurationError(f"phase {tables.name!r}: {problem}") from problem
        optimizer, adapter = tables.config.optimizer, config.student.adapter
        if adapter is not None:
            optimizer = replace(optimizer, learning_rate=optimizer.learning_rate * adapter.learning_rate_factor)
        phases.append(Phase(recipe, optimizer, tables.first_step, tables.name))
    check_server_suffices(config, phases)
    check_reference_config(config.reference, [phase.recipe.target for phase in phases])
    return phases


def _check_imitated_tokens(recipe: Recipe) -> None:
    """Refuse to imitate sampled tokens in which the teacher had no say: their mean gradient is 0."""
    if recipe.divergence.imitates_tokens and not (recipe.policy.needs_teacher or recipe.policy.is_offline):
        raise ConfigurationError(
            f"divergence {recipe.divergence} imitates the sampled tokens, but the policy {recipe.policy} draws them "
            "without the teacher, so there is nothing to learn from them. Set policy = 'teacher'."
        )


def policy_at(config: RunConfig, step: int) -> Policy:
    """Who picks the tokens at a step of the run, with its schedules resolved."""
    return phase_at(build_phases(config), step).recipe_at(step).policy


def build_engine(
    config: RunConfig,
    student_tokenizer: Any,
    teacher_tokenizer: Any,
    student_path: str | None = None,
    *,
    with_reference: bool = False,
    with_teacher: bool = True,
    runtime: LocalRuntime | None = None,
) -> PairedEngine:
    """Load the models and put them side by side; `student_path` replaces the student's weights (a checkpoint).

    Without a teacher's weights, of one that is served or not read, the vocabulary is still the one shared with it.
    """
    runtime = runtime or LocalRuntime(config.runtime.device)
    device = runtime.device
    check_models(config, with_teacher=with_teacher)
    student, first_self = load_student(config, student_tokenizer, device, student_path)
    is_served = config.teacher.server is not None
    teacher, routes = None, dict[str, LanguageModel]()
    if with_teacher and not is_served:
        teacher = runtime.placed_teacher(lambda place: load_teacher(config.teacher, teacher_tokenizer, place))
    if with_teacher:
        routes = {name: load_model(model, tokenizer_of(model), device) for name, model in config.teacher.routes.items()}
    reference = None
    if with_reference and config.reference.path is None:
        # The student's initial weights, computed as the student is.
        reference = first_self or load_model(config.student, student_tokenizer, device)
        reference.autocast = student.autocast
    elif with_reference:
        reference = load_model(config.reference, tokenizer_of(config.reference), device)
    for decoded in (*(teacher.members if teacher else ()), *routes.values()):
        decoded.compile = config.rollout.compile
    known_teacher = teacher or meta_teacher(config.teacher, teacher_tokenizer)
    known_routes = [
        routes.get(name) or load_meta_model(model, tokenizer_of(model)) for name, model in config.teacher.routes.items()
    ]
    vocabulary = align(student, known_teacher, *known_routes, reference)
    return PairedEngine(
        student,
        teacher,
        routes=routes,
        reference=reference,
        reference_reads=config.reference.reads,
        vocabulary=vocabulary,
        support_size=config.rollout.support_size,
        draft_length=config.rollout.draft_length,
        max_rows=config.rollout.max_rows,
        cache_bytes=None if config.rollout.cache_gib is None else int(config.rollout.cache_gib * 2**30),
        score_tokens=config.rollout.score_tokens,
        served_teacher=make_served_teacher(
            config, build_phases(config), vocabulary, known_teacher.padded_vocabulary_size
        )
        if is_served
        else None,
    )


def make_verifier(task: str, student: LanguageModel, truncated: TruncatedAnswers = "whole") -> VerifyRollouts:
    """Right or wrong for rollouts, from their text and whether they ended by themselves."""
    decode, verifier = decoder_of(student), Verifier(task, truncated=truncated)

    def response_of(rollout: Rollout) -> str:
        # Some templates open the thinking at the prompt's end, and the response then has its end only.
        opens = decode(rollout.prompt_tokens[-_MAX_OPENING_TOKENS:]).rstrip().endswith(THINKING_OPENS)
        return THINKING_OPENS * opens + decode(rollout.response_tokens)

    def verify(rollouts: Sequence[Rollout], answers: Sequence[str]) -> Sequence[bool]:
        return [
            verifier.verify(response_of(rollout), answer, finished=rollout.finished)
            for rollout, answer in zip(rollouts, answers, strict=True)
        ]

    return verify


def decoder_of(student: LanguageModel) -> Callable[[Sequence[int]], str]:
    """Token ids to text, without special tokens."""

    def decode(tokens: Sequence[int]) -> str:
        return str(student.tokenizer.decode(list(tokens), skip_special_tokens=True))

    return decode


def load_tokenizers(config: RunConfig) -> tuple[Any, Any]:
    """The student's and the teacher's tokenizer; refused if they differ, or if there is no model beside one."""
    check_distinct(config.student.path, config.teacher.path, config.student.revision, config.teacher.revision)
    for model in (config.student, config.teacher) if config.teacher.server is None else (config.student,):
        check_files(model.path, allow_pickle=model.allow_pickle)
    loaded = [
        load_tokenizer(model.path, revision=model.revision, trust_remote_code=model.trust_remote_code)
        for model in (config.student, config.teacher)
    ]
    check_same_tokenizer(*loaded)
    for name, other in other_models(config):
        if name.startswith("teacher.routes"):
            check_distinct(config.student.path, other.path, config.student.revision, other.revision)
        check_files(other.path, allow_pickle=other.allow_pickle)
        check_same_tokenizer(loaded[0], tokenizer_of(other), name)
    return loaded[0], loaded[1]


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
