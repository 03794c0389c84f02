"""Which of several methods is better, by how much, and at what cost?  Seeds, pairs, one table; runs are `train`'s."""

from tutelage.comparison.compare import run_plan
from tutelage.comparison.outcome import Outcome
from tutelage.comparison.plan import CHECKPOINT_RULES, Method, Plan, make_methods
from tutelage.comparison.running import Job, default_workers, is_finished, records_of, run_jobs
from tutelage.comparison.sweep import SWEEP_NOTE, draw_sweep, grid_points, parse_grid
from tutelage.comparison.worlds import World, read_world

__all__ = [
    "CHECKPOINT_RULES",
    "SWEEP_NOTE",
    "Job",
    "Method",
    "Outcome",
    "Plan",
    "World",
    "default_workers",
    "draw_sweep",
    "grid_points",
    "is_finished",
    "make_methods",
    "parse_grid",
    "read_world",
    "records_of",
    "run_jobs",
    "run_plan",
]
