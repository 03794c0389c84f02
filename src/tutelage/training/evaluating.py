"""What is evaluated while a run goes on, and when; and which weights are the best so far."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial

from tutelage.errors import ConfigurationError
from tutelage.evaluation import EvaluationResult, EvaluationSample, changes_since, mark
from tutelage.rollout.scorers import score_with_full_kl
from tutelage.training.checkpoint_files import TrainerState
from tutelage.training.collect import BatchSource
from tutelage.training.interruption import Interruption
from tutelage.training.observer import Observer
from tutelage.training.retention import Retention
from tutelage.training.run import Run
from tutelage.training.student_reading import student_logprobs
from tutelage.types import Rollout

__all__ = ["evaluate_if_due"]


def evaluate_if_due(run: Run, state: TrainerState, observer: Observer, interruption: Interruption) -> bool:
    """Evaluate the present weights unless that is recorded already; return whether they are the best so far."""
    if not run.evaluation.is_due(state.step, run.num_steps):
        return False
    records = run.runtime.from_first(lambda: run.folder.read("evaluations.jsonl"))
    recorded = {record["name"] for record in records if record["step"] == state.step}
    source = run.source
    for problems, policy, drawing in run.evaluation.jobs(source.seed):
        if problems.name in recorded:
            continue
        assert source.verify is not None
        source.engine.sync(policy, state.step)
        earlier = [record["step"] for record in records if record["name"] == problems.name]
        retained = run.evaluation.retained_answers if drawing.temperature == 1 else 0
        retention = Retention(run, problems, retained)
        marked = mark(
            source.engine,
            problems,
            policy,
            drawing,
            verify=source.verify,
            map_shards=interruption.map_shards,
            read=_reading(source) if run.evaluation.teacher_reads else None,
        )
        result, samples = marked.result(), marked.samples(run.decode)
        if earlier:
            result = _with_changes(run, min(earlier), result, samples)
        if retained and not earlier:
            retention.keep(marked)
        if retained:
            result = replace(result, retained_mass=retention.mass())
        with interruption.protected():
            # The samples first: what is in evaluations.jsonl is not evaluated again after a kill.
            run.folder.write_samples(state.step, problems.name, samples)
            run.folder.append("evaluations.jsonl", [{"step": state.step, **result.to_dict()}])
            observer.on_evaluation(state.step, result)
    _read_texts(run, state.step, interruption)
    value = run.runtime.from_first(lambda: _mean_of_best_metric(run, state.step))
    if state.best_value is not None and value <= state.best_value:
        return False
    state.best_value, state.best_step = value, state.step
    # The untrained student is the first best; there is no need to save it as a checkpoint.
    return state.step > 0


def _reading(source: BatchSource) -> Callable[[Sequence[Rollout]], list[Rollout]]:
    """Lets the teacher read answers; one in pieces on several cards has no head that a process could ask alone."""
    if source.runtime.reads_teacher_together:
        return source.scorer.score
    return partial(score_with_full_kl, source.scorer, source.models, source.rollout.score_tokens)


def _read_texts(run: Run, step: int, interruption: Interruption) -> None:
    """Write down how probable the given texts are, unless that is recorded already."""
    recorded = run.runtime.from_first(lambda: run.folder.read("texts.jsonl"))
    known = {record["name"] for record in recorded if record["step"] == step}
    for texts in run.evaluation.texts:
        if texts.name not in known:
            result = texts.result(student_logprobs(run, texts.rollouts))
            with interruption.protected():
                run.folder.append("texts.jsonl", [{"step": step, **result.to_dict()}])


def _with_changes(
    run: Run, first: int, result: EvaluationResult, samples: Sequence[EvaluationSample]
) -> EvaluationResult:
    """The result with what is gained and lost since the evaluation of the step `first`."""
    before = run.runtime.from_first(lambda: run.folder.read_samples(first, result.name))
    found = changes_since(before, map(asdict, samples))
    return result if found is None else replace(result, gained_share=found[0], lost_share=found[1])


def _mean_of_best_metric(run: Run, step: int) -> float:
    """The best-checkpoint metric, averaged over the evaluation sets (as TRB's tables average benchmarks)."""
    metric = run.checkpoint.best_metric
    names = {problems.name for problems in run.evaluation.sets}  # greedy answers do not decide
    recorded = run.folder.read("evaluations.jsonl")
    records = [record for record in recorded if record["step"] == step and record["name"] in names]
    if any(not isinstance(record.get(metric), int | float) for record in records):
        known = ", ".join(name for name, value in records[0].items() if isinstance(value, int | float))
        raise ConfigurationError(
            f"checkpoint.best_metric is {metric!r}; evaluations report {known}. Choose one of these."
        )
    return float(sum(record[metric] for record in records)) / len(records)
