"""The run: evaluate, save, learn; again until the last step.

A run's state is the student's weights, the optimizer's moments and the number of updates made (and the weights of an
earlier step, where a target looks back at them). Everything else - which
prompts, which random numbers, what budget, what learning rate - is a function of that number, so a run that is killed
and resumed writes the same bytes as one that was not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from tutelage.diagnostics import detail_metrics
from tutelage.errors import ConfigurationError, NonFiniteError, RunInterrupted, ServerError
from tutelage.evaluation import GREEDY_SUFFIX, EvaluationSet, evaluate
from tutelage.models import ModelSet, Reference
from tutelage.policies import Policy
from tutelage.rollout import Engine, MapShards, Scorer
from tutelage.runtime import LocalRuntime
from tutelage.training.checkpoint import Checkpoints, CheckpointSettings
from tutelage.training.checkpoint_files import TrainerState, load_update, read_state, restore_reference
from tutelage.training.collect import PromptSource, RolloutSettings, Stopwatch, collect
from tutelage.training.data import PromptOrder
from tutelage.training.interruption import Interruption
from tutelage.training.observer import Observer
from tutelage.training.phases import Phase, phase_at
from tutelage.training.run_files import RunFolder
from tutelage.training.step_records import metric_record, sample_record, step_metrics
from tutelage.training.trackers import Tracking
from tutelage.training.updates import GradientUpdate, Update, UpdateContext
from tutelage.types import Batch, Prompt, Rollout, StepResult

__all__ = ["EvaluationPlan", "Run", "train"]


@dataclass(frozen=True)
class EvaluationPlan:
    """What is evaluated during a run, and how.

    Fields:
      sets: problem sets; none = no evaluation.
      policy: how answers are drawn, the student at `temperature`.
      every: steps between evaluations; before the first step and after the last one always. 0 = only those two.
      num_samples, temperature, max_new_tokens: per problem.
      greedy_policy: the student at temperature 0, which then gives one answer more per problem; None = not asked for.
    """

    sets: Sequence[EvaluationSet]
    policy: Policy
    every: int
    num_samples: int
    temperature: float
    max_new_tokens: int
    greedy_policy: Policy | None = None

    def jobs(self) -> list[tuple[EvaluationSet, Policy, int, float]]:
        """(set, policy, samples per problem, temperature) of all that one evaluation does, greedy answers first."""
        sampled = [(problems, self.policy, self.num_samples, self.temperature) for problems in self.sets]
        if self.greedy_policy is None:
            return sampled
        named = [replace(problems, name=problems.name + GREEDY_SUFFIX) for problems in self.sets]
        return [*((problems, self.greedy_policy, 1, 0.0) for problems in named), *sampled]

    def is_due(self, step: int, num_steps: int) -> bool:
        """Whether the weights after `step` updates are evaluated."""
        return bool(self.sets) and (step in (0, num_steps) or (self.every > 0 and step % self.every == 0))


@dataclass
class Run:
    """Everything one training run is made of; `config.build` puts it together.

    `open_folder` makes the run's folder, or notes in it what a resumed run has changed; the first process calls it.
    """

    phases: Sequence[Phase]
    models: ModelSet
    engine: Engine
    scorer: Scorer
    runtime: LocalRuntime
    prompts: Sequence[Prompt]
    answers: Sequence[str | None]
    prompt_order: PromptOrder
    rollout: RolloutSettings
    checkpoint: CheckpointSettings
    evaluation: EvaluationPlan
    num_steps: int
    seed: int
    micro_batch_tokens: int
    folder: RunFolder
    verify: Callable[[Sequence[Rollout], Sequence[str]], Sequence[bool]] | None
    decode: Callable[[Sequence[int]], str]
    loss_form: str = "auto"
    update: Callable[[UpdateContext], Update] = GradientUpdate
    samples_per_log: int = 4
    steps_per_log: int = 1
    diagnostics_every: int = 10
    trackers: Mapping[str, bool] = field(default_factory=dict)
    name: str = "run"
    project: str = "tutelage"
    settings: Mapping[str, Any] = field(default_factory=dict)
    reference: Reference = field(default_factory=Reference)
    is_resumed: bool = False
    resume_from: Path | None = None
    open_folder: Callable[[], None] = lambda: None
    messages: list[str] = field(default_factory=list)


def train(run: Run, observer: Observer) -> TrainerState:
    """Carry a run to its last step; files are written as it goes, and the run's trackers hear of it.

    Its folder is held meanwhile, and taken back if the run ends before it has computed anything.

    Raises:
      OutputExistsError: the folder has come into being since the run was put together.
      ConfigurationError: a tracker cannot be started; nothing has been computed yet.
      RunInterrupted: Ctrl-C or SIGTERM; the run was saved at the step it had reached.
      ServerError: a server that computes for the run is gone; saved likewise.
      NonFiniteError: a loss or a gradient was not finite, or the weights or moments after an update; names the step,
        and the last good checkpoint stays.
      CheckpointError: a checkpoint could not be written; the previous one stays.
    """
    try:
        run.runtime.from_first(run.open_folder)
        with Tracking(
            observer,
            run.folder,
            run.trackers if run.runtime.is_first else {},
            name=run.name,
            project=run.project,
            settings=run.settings,
            is_resumed=run.is_resumed,
        ) as tracking:
            return _train(run, tracking)
    except Exception:
        run.folder.remove_if_unused()
        raise
    finally:
        run.folder.release()


def _train(run: Run, observer: Observer) -> TrainerState:
    for model in run.models.frozen:
        model.module.requires_grad_(False)
    run.models.student.enable_grad()  # afterwards: a reference may share its backbone
    learner = run.runtime.learner(run.models.student)
    update = run.update(
        UpdateContext(
            run.models,
            learner,
            run.runtime,
            settings_at=lambda step: phase_at(run.phases, step).optimizer,
            seed=run.seed,
            micro_batch_tokens=run.micro_batch_tokens,
            loss_form=run.loss_form,
        )
    )
    checkpoints = Checkpoints(run.folder.checkpoints, run.checkpoint)
    state = TrainerState(seed=run.seed)
    if run.resume_from is not None:
        state = read_state(run.resume_from)
        load_update(run.resume_from, update)
        restore_reference(run.resume_from, run.reference, state.step)
        run.runtime.from_first(lambda: checkpoints.repair_index(state))
    if run.is_resumed:
        run.folder.truncate_to(state.step)
    saved_step = state.step if run.resume_from is not None else None
    observer.on_start(state.step, run.num_steps)

    def save() -> None:
        nonlocal saved_step
        kept, update_state = run.reference.state_at(state.step), update.state_dict()
        # All wait for it: a launcher that sees one process gone would end the one that writes.
        path = run.runtime.from_first(
            lambda: checkpoints.save(state, run.models.student, run.models.vocabulary, update_state, kept)
        )
        saved_step = state.step
        observer.on_checkpoint(state.step, path)

    source = PromptSource(
        run.models,
        run.engine,
        run.scorer,
        run.prompts,
        run.answers,
        run.prompt_order,
        run.rollout,
        run.verify,
        run.runtime,
        run.seed,
    )
    with Interruption(run.runtime) as interruption:

        def map_shards(count: int, work: Callable[[slice], list[Any]]) -> list[Any]:
            with interruption.local_section():
                found = work(run.runtime.share(count))
            return run.runtime.gather(found)

        try:
            while True:
                is_best = _evaluate_if_due(run, state, observer, interruption, map_shards)
                is_due = state.step % run.checkpoint.every == 0 and state.step > 0
                if saved_step != state.step and (is_due or is_best or state.step == run.num_steps):
                    with interruption.protected():
                        save()
                if state.step >= run.num_steps:
                    return state

                phase = phase_at(run.phases, state.step)
                run.reference.refresh(state.step)
                recipe = phase.recipe_at(state.step)
                run.engine.sync(recipe.policy, state.step)
                watch = Stopwatch()
                pending = update.prepare(
                    state.step, recipe, partial(collect, source, state.step, recipe, watch, map_shards)
                )
                # Weights, step and files move together: a signal that comes now is raised when all three have.
                with interruption.protected():
                    numbers = update.commit(pending)
                    watch.lap("update")
                    result = _result_of(run, phase, pending.batch, recipe.policy, numbers, watch, state.step)
                    state.step += 1
                    state.prompts_used += run.prompt_order.prompts_per_step
                    run.folder.append("metrics.jsonl", [metric_record(result)])
                    if result.step % run.steps_per_log == 0:
                        run.folder.append("samples.jsonl", _sample_records(run, result))
                    observer.on_step(result)
        except (RunInterrupted, ServerError) as stopped:
            update.abandon()
            if saved_step != state.step:
                with interruption.protected():
                    save()
            so_far = "" if isinstance(stopped, RunInterrupted) else " This was"
            raise type(stopped)(
                f"{stopped}{so_far} after {state.step} of {run.num_steps} steps; the run is saved in "
                f"{run.folder.path}. Continue it with: tutelage train {run.folder.path}/config.toml --resume"
            ) from None
        except NonFiniteError as problem:
            last = (
                "no checkpoint was written yet" if saved_step is None else f"the checkpoint of step {saved_step} stays"
            )
            raise NonFiniteError(
                f"step {state.step}: {problem}. The run stops, and nothing of it is saved; {last}. A lower "
                "optimizer.learning_rate usually helps; with divergence.rest = 'tail' an infinite loss means that the "
                "teacher itself rules out what the student does."
            ) from problem


def _evaluate_if_due(
    run: Run, state: TrainerState, observer: Observer, interruption: Interruption, map_shards: MapShards[Any]
) -> bool:
    """Evaluate the present weights unless that is on file already; tells whether they are the best so far."""
    if not run.evaluation.is_due(state.step, run.num_steps):
        return False
    records = run.runtime.from_first(lambda: run.folder.read("evaluations.jsonl"))
    recorded = {record["name"] for record in records if record["step"] == state.step}
    for problems, policy, num_samples, temperature in run.evaluation.jobs():
        if problems.name in recorded:
            continue
        assert run.verify is not None
        run.engine.sync(policy, state.step)
        result, samples = evaluate(
            run.engine,
            problems,
            policy,
            verify=run.verify,
            decode=run.decode,
            num_samples=num_samples,
            temperature=temperature,
            max_new_tokens=run.evaluation.max_new_tokens,
            seed=run.seed,
            map_shards=map_shards,
        )
        with interruption.protected():
            # The samples first: what is in evaluations.jsonl is not evaluated again after a kill.
            run.folder.write_samples(state.step, problems.name, samples)
            run.folder.append("evaluations.jsonl", [{"step": state.step, **result.to_dict()}])
            observer.on_evaluation(state.step, result)
    value = run.runtime.from_first(lambda: _mean_of_best_metric(run, state.step))
    if state.best_value is not None and value <= state.best_value:
        return False
    state.best_value, state.best_step = value, state.step
    # The untrained student is the first best; there is no need to save it as a checkpoint.
    return state.step > 0


def _mean_of_best_metric(run: Run, step: int) -> float:
    """The best-checkpoint metric, averaged over the evaluation sets (as TRB's tables average benchmarks)."""
    metric = run.checkpoint.best_metric
    names = {problems.name for problems in run.evaluation.sets}  # greedy answers are looked at, and decide nothing
    recorded = run.folder.read("evaluations.jsonl")
    records = [record for record in recorded if record["step"] == step and record["name"] in names]
    if any(not isinstance(record.get(metric), int | float) for record in records):
        known = ", ".join(name for name, value in records[0].items() if isinstance(value, int | float))
        raise ConfigurationError(
            f"checkpoint.best_metric is {metric!r}; evaluations report {known}. Choose one of these."
        )
    return float(sum(record[metric] for record in records)) / len(records)


def _result_of(
    run: Run, phase: Phase, batch: Batch, policy: Policy, numbers: Mapping[str, float], watch: Stopwatch, step: int
) -> StepResult:
    metrics = step_metrics(batch, policy, numbers, watch.seconds)
    if run.diagnostics_every > 0 and step % run.diagnostics_every == 0:
        metrics |= detail_metrics(batch.rollouts)
    correct = [reward > 0 for reward in batch.rewards["correct"].tolist()] if "correct" in batch.rewards else None
    return StepResult(step, metrics, batch.rollouts, correct, phase.name)


def _sample_records(run: Run, result: StepResult) -> list[dict[str, Any]]:
    chosen, records = run.prompt_order.indices(result.step), []
    for place, rollout in enumerate(result.rollouts[: run.samples_per_log]):
        number = chosen[rollout.prompt_index]
        is_correct = None if result.correct is None else result.correct[place]
        records.append(
            sample_record(
                result.step,
                rollout,
                run.decode,
                prompt_number=number,
                answer=run.answers[number],
                is_correct=is_correct,
            )
        )
    return records
