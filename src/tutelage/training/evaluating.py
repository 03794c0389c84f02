"""What is evaluated while a run goes on, and when; and which weights are the best so far."""

from __future__ import annotations

from tutelage.errors import ConfigurationError
from tutelage.evaluation import evaluate
from tutelage.training.checkpoint_files import TrainerState
from tutelage.training.interruption import Interruption
from tutelage.training.observer import Observer
from tutelage.training.run import Run

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
        result, samples = evaluate(
            source.engine,
            problems,
            policy,
            drawing,
            verify=source.verify,
            decode=run.decode,
            map_shards=interruption.map_shards,
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
    names = {problems.name for problems in run.evaluation.sets}  # greedy answers do not decide
    recorded = run.folder.read("evaluations.jsonl")
    records = [record for record in recorded if record["step"] == step and record["name"] in names]
    if any(not isinstance(record.get(metric), int | float) for record in records):
        known = ", ".join(name for name, value in records[0].items() if isinstance(value, int | float))
        raise ConfigurationError(
            f"checkpoint.best_metric is {metric!r}; evaluations report {known}. Choose one of these."
        )
    return float(sum(record[metric] for record in records)) / len(records)
