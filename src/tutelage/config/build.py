"""From a checked configuration to a run that can be trained, cheapest refusals first.

The order is the point: paths and numbers, then prompts and tokenizers, and only then gigabytes of weights. Nothing is
written before everything has been built.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tutelage.config.assembly import RunAssembly
from tutelage.config.consistency import check_runtime
from tutelage.config.load import settings_of, to_toml
from tutelage.config.resuming import Beginning, beginning_of, with_micro_batch
from tutelage.config.schema import RunConfig
from tutelage.config.serving import check_sampler, check_teacher_servers, make_hosted_engine
from tutelage.errors import ConfigurationError
from tutelage.losses import LayerLoss
from tutelage.models import ModelSet, check_comparable_layers
from tutelage.rollout import Engine, Engines
from tutelage.runtime import LocalRuntime, Processes, runtime_for
from tutelage.training import LogSettings, Run, RunFolder, RunLabel, RunStart, check_models_form, chosen_trackers
from tutelage.training.run_files import FINGERPRINTS

__all__ = ["build_run"]


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
    runtime = _runtime_of(config, processes)
    folder = RunFolder(Path(config.output_folder), writes=runtime.is_first)
    try:
        return _run_from(beginning_of(config, folder, runtime, resume=resume, accept=accept), runtime)
    except BaseException:
        folder.release()
        raise


def _run_from(beginning: Beginning, runtime: LocalRuntime) -> Run:
    checkpoint = None if beginning.checkpoint is None else str(beginning.checkpoint)
    parts = RunAssembly(beginning.config, runtime, checkpoint)
    trackers = chosen_trackers(parts.config.logging.trackers)
    parts.check_before_weights()
    inputs, messages = beginning.inputs, list(beginning.messages)
    if parts.offline_answers is None and parts.config.data.scores is not None:
        messages.append("data.scores is set, but no policy is 'offline', so it is ignored")
    inputs.add(parts.data_inputs())
    micro_batch_tokens = parts.micro_batch_tokens  # before weights are loaded: of a GPU's memory, what is free decides
    if parts.config.runtime.micro_batch_tokens is None:
        messages.append(
            f"runtime.micro_batch_tokens is left out: {micro_batch_tokens}, by the free memory of the GPU; the run "
            "keeps it when it is resumed"
        )
    hashes = parts.model_hashes()
    engine = _checked_engine(parts)
    inputs.add(hashes.inputs(parts.models.vocabulary))
    messages += [f"accepted, and noted in {beginning.folder.path / FINGERPRINTS}: {line}" for line in inputs.accepted]
    config, logging = with_micro_batch(parts.dated_config, micro_batch_tokens), parts.config.logging
    return Run(
        source=replace(parts.source, engine=engine),
        learning=parts.learning,
        num_steps=config.steps,
        evaluation=parts.evaluation,
        checkpoint=config.checkpoint,
        logs=LogSettings(logging.samples_per_log, logging.steps_per_log, logging.diagnostics_every),
        decode=parts.decode,
        folder=beginning.folder,
        label=RunLabel(config.name, logging.project, settings_of(config)),
        trackers=trackers,
        start=RunStart(beginning.is_resumed, beginning.checkpoint, lambda: beginning.open_folder(config)),
        messages=messages,
    )


def _checked_engine(parts: RunAssembly) -> Engine:
    """What makes the run's answers; refused where a step of the run could not be computed."""
    config, models, prompts, engine = parts.config, parts.models, parts.prompts.prompts, parts.engine
    check_teacher_servers(config, parts.served_scorers, prompts, parts.tokenizers.teachers)
    if config.rollout.engine != "paired":
        hosted = make_hosted_engine(config, models, parts.runtime)
        check_sampler(config, hosted.sampler, prompts)
        engine = Engines([hosted, engine])
    # Refused now, if one answer at the limit does not fit into the caches, and not when the first step needs it.
    asks_teacher = any(phase.recipe.policy.needs_teacher for phase in parts.phases)
    parts.paired_engine.rows_that_fit(prompts, config.rollout.max_new_tokens, with_teacher=asks_teacher)
    for phase in parts.phases:
        teachers = list(models.teachers.values())
        check_models_form(config.runtime.loss, phase.recipe, models.student, teachers)
        if any(isinstance(loss, LayerLoss) for loss in phase.recipe.losses):
            _check_layers(config, models)
    return engine


def _check_layers(config: RunConfig, models: ModelSet) -> None:
    """Refuse a loss on layers where the student's are sharded, or where teacher and student cannot be compared."""
    if config.runtime.strategy == "fsdp2":
        raise ConfigurationError(
            "runtime.strategy is 'fsdp2', but a loss on layers calls the student's layers one by one, which are in "
            "parts there. Use runtime.strategy = 'ddp'."
        )
    for teacher in models.teachers.values():
        check_comparable_layers(models.student, teacher)


def _runtime_of(config: RunConfig, processes: Processes | None) -> LocalRuntime:
    """Where the run runs; all its processes must have the same run file."""
    settings = config.runtime
    check_runtime(config, is_shared=processes is not None)
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
