"""What is one step, and how do steps make a run?"""

from tutelage.training.checkpoint import (
    Checkpoints,
    CheckpointSettings,
    checkpoints_in,
    find_resumable,
    named_checkpoints,
)
from tutelage.training.checkpoint_files import TrainerState, damage_of, read_inputs, read_state, step_of
from tutelage.training.collect import BatchSource, RolloutSettings, Stopwatch, collect
from tutelage.training.data import PromptOrder
from tutelage.training.forms import DEFAULT_LOSS_FORM, check_method_form, check_models_form
from tutelage.training.group_metrics import zero_spread_share
from tutelage.training.loop import train
from tutelage.training.objective import MICRO_BATCH_TOKENS, BatchLoss, Objective
from tutelage.training.observer import Observer
from tutelage.training.optimizer import OptimizerSettings
from tutelage.training.phases import Phase, phase_at
from tutelage.training.recipe import Recipe
from tutelage.training.run import EvaluationPlan, Learning, LogSettings, Run, RunStart
from tutelage.training.run_files import RunFolder
from tutelage.training.trackers import TRACKERS, RunLabel, Tracking, chosen_trackers
from tutelage.training.updates import UPDATES, GradientUpdate, Pending, Update, UpdateContext

__all__ = [
    "DEFAULT_LOSS_FORM",
    "MICRO_BATCH_TOKENS",
    "BatchLoss",
    "BatchSource",
    "CheckpointSettings",
    "Checkpoints",
    "EvaluationPlan",
    "GradientUpdate",
    "Learning",
    "LogSettings",
    "Objective",
    "Observer",
    "OptimizerSettings",
    "Pending",
    "Phase",
    "PromptOrder",
    "Recipe",
    "RolloutSettings",
    "Run",
    "RunFolder",
    "RunLabel",
    "RunStart",
    "Stopwatch",
    "TRACKERS",
    "Tracking",
    "TrainerState",
    "UPDATES",
    "Update",
    "UpdateContext",
    "check_method_form",
    "check_models_form",
    "checkpoints_in",
    "chosen_trackers",
    "collect",
    "damage_of",
    "find_resumable",
    "named_checkpoints",
    "phase_at",
    "read_inputs",
    "read_state",
    "step_of",
    "train",
    "zero_spread_share",
]
