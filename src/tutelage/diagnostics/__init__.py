"""What happened in a rollout?  Rollouts in, named numbers out; pure."""

from tutelage.diagnostics.metrics import METRICS, Metric, rollout_metrics
from tutelage.diagnostics.teacher_support import teacher_support_auroc

__all__ = ["METRICS", "Metric", "rollout_metrics", "teacher_support_auroc"]
