"""One training step: collect a batch, prepare the update, make it, write down what happened.

The step does not know which method it runs, nor how its update changes the weights.
"""

from __future__ import annotations

from functools import partial

from tutelage.diagnostics import detail_metrics
from tutelage.training.checkpoint_files import TrainerState
from tutelage.training.collect import Stopwatch, collect
from tutelage.training.interruption import Interruption
from tutelage.training.observer import Observer
from tutelage.training.peak_memory import PeakMemory
from tutelage.training.phases import phase_at
from tutelage.training.run import Run
from tutelage.training.step_records import metric_record, sample_records, step_metrics
from tutelage.training.updates import Update
from tutelage.types import StepResult

__all__ = ["take_step"]


def take_step(run: Run, update: Update, state: TrainerState, observer: Observer, interruption: Interruption) -> None:
    """Make the update that leads from `state.step` to the next one, and move `state` on.

    Raises:
      RunInterrupted, ServerError, RewardError: nothing of the step is kept once the update was made to `abandon` it.
      NonFiniteError: a loss, a gradient or a weight is NaN or infinite.
    """
    step, phase = state.step, phase_at(run.learning.phases, state.step)
    recipe, watch, peak = phase.recipe_at(step), Stopwatch(), PeakMemory(run.source.runtime.device)
    pending = update.prepare(step, recipe, partial(collect, run.source, step, recipe, watch, interruption.map_shards))
    # Weights, step, reference and files move together: a signal that comes now is raised when all have.
    with interruption.protected():
        numbers = update.commit(pending)
        watch.lap("update")
        batch = pending.batch
        metrics = step_metrics(batch, recipe.policy, numbers, watch.seconds) | peak.metrics()
        metrics["processor_seconds"] = watch.processor_seconds
        if run.logs.diagnostics_every > 0 and step % run.logs.diagnostics_every == 0:
            metrics |= detail_metrics(batch.rollouts)
        if (rating := run.source.rating) is not None:
            metrics |= rating.metrics(batch, step)
            rating.advance(batch, step)
        correct = [reward > 0 for reward in batch.rewards["correct"].tolist()] if "correct" in batch.rewards else None
        rewards = {} if rating is None else {name: values_B.tolist() for name, values_B in batch.rewards.items()}
        result = StepResult(step, metrics, batch.rollouts, correct, phase.name, rewards, batch.prompt_numbers)
        state.step += 1
        state.prompts_used += run.source.order.prompts_per_step
        run.learning.reference.refresh(state.step)
        _write(run, result)
        observer.on_step(result)


def _write(run: Run, result: StepResult) -> None:
    """Add the step's lines to the run's files."""
    run.folder.append("metrics.jsonl", [metric_record(result)])
    if result.step % run.logs.steps_per_log == 0:
        num_samples, source = run.logs.samples_per_log, run.source
        run.folder.append("samples.jsonl", sample_records(result, num_samples, source, run.decode))
