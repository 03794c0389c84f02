"""What is one step, and how do steps make a run?"""

from tutelage.training.checkpoint import Checkpoints, CheckpointSettings, find_resumable, named_checkpoints
from tutelage.training.checkpoint_files import TrainerState, read_state
from tutelage.training.data import PromptOrder
from tutelage.training.loop import EvaluationPlan, Run, train
from tutelage.training.loss_form import check_method_form, check_models_form
from tutelage.training.objective import BatchLoss, Objective
from tutelage.training.observer import Observer
from tutelage.training.optimizer import OptimizerSettings
from tutelage.training.phases import Phase, phase_at
from tutelage.training.run_files import RunFolder
from tutelage.training.step import Recipe, RolloutSettings, accumulate_gradient, apply_update
from tutelage.training.trackers import TRACKERS, Tracking, chosen_trackers

__all__ = [
    "BatchLoss",
    "CheckpointSettings",
    "Checkpoints",
    "EvaluationPlan",
    "Objective",
    "Observer",
    "OptimizerSettings",
    "Phase",
    "PromptOrder",
    "Recipe",
    "RolloutSettings",
    "Run",
    "RunFolder",
    "TRACKERS",
    "Tracking",
    "TrainerState",
    "accumulate_gradient",
    "apply_update",
    "chosen_trackers",
    "find_resumable",
    "named_checkpoints",
    "phase_at",
    "read_state",
    "check_method_form",
    "check_models_form",
    "train",
]
