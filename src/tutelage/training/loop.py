"""The run: evaluate, save, learn; again until the last step.

A run's state is the weights that learn, the state of their update, the number of updates made, the weights of a
reference that follows the student, and what a combination of rewards has learned. Everything else - which prompts,
which random numbers, what budget, what learning rate - is a function of that number, so a run that is killed and
resumed writes the same bytes as one that was not.
"""

from __future__ import annotations

from tutelage.errors import NonFiniteError, RewardError, RunInterrupted, ServerError
from tutelage.training.checkpoint_files import TrainerState
from tutelage.training.evaluating import evaluate_if_due
from tutelage.training.interruption import Interruption
from tutelage.training.observer import Observer
from tutelage.training.run import Run
from tutelage.training.saving import Saver
from tutelage.training.step import take_step
from tutelage.training.trackers import Tracking

__all__ = ["train"]


def train(run: Run, observer: Observer) -> TrainerState:
    """Carry a run to its last step; files are written as it goes, and its trackers show it.

    Its folder is held meanwhile, and taken back if the run ends before it has computed anything.

    Raises:
      OutputExistsError: the folder has come into being since the run was put together.
      ConfigurationError: a tracker cannot be started; nothing has been computed yet.
      RunInterrupted: Ctrl-C or SIGTERM; the run was saved at the step it had reached.
      ServerError, RewardError: a server that computes for the run is gone, or a reward has no number for an answer;
        saved likewise.
      NonFiniteError: a loss or a gradient was not finite, or the weights or moments after an update; names the step,
        and the last good checkpoint stays.
      CheckpointError: a checkpoint could not be written; the previous one stays.
    """
    try:
        run.runtime.from_first(run.start.open_folder)
        trackers = run.trackers if run.runtime.is_first else {}
        with Tracking(observer, run.folder, trackers, run.label, run.start.is_resumed) as tracking:
            return _train(run, tracking)
    except Exception:
        run.folder.remove_if_unused()
        raise
    finally:
        run.folder.release()


def _train(run: Run, observer: Observer) -> TrainerState:
    update = run.learning.update_for(run.source)
    saver = Saver(run, update, observer)
    state = saver.restored()
    observer.on_start(state.step, run.num_steps)
    with Interruption(run.runtime) as interruption:
        try:
            while True:
                is_best = evaluate_if_due(run, state, observer, interruption)
                if saver.is_due(state, is_best=is_best):
                    with interruption.protected():
                        saver.save(state)
                if state.step >= run.num_steps:
                    return state
                take_step(run, update, state, observer, interruption)
        except (RunInterrupted, ServerError, RewardError) as stopped:
            update.abandon()
            with interruption.protected():
                saver.save(state)
            so_far = "" if isinstance(stopped, RunInterrupted) else " This was"
            raise type(stopped)(
                f"{stopped}{so_far} after {state.step} of {run.num_steps} steps; the run is saved in "
                f"{run.folder.path}. Continue it with: tutelage train {run.folder.path}/config.toml --resume"
            ) from None
        except NonFiniteError as problem:
            saved = saver.saved_step
            last = "no checkpoint was written yet" if saved is None else f"the checkpoint of step {saved} stays"
            raise NonFiniteError(
                f"step {state.step}: {problem}. The run stops, and nothing of it is saved; {last}. A lower "
                "optimizer.learning_rate usually helps; with divergence.rest = 'tail' an infinite loss means that the "
                "teacher itself rules out what the student does."
            ) from problem
