"""What happened in a rollout?  Rollouts in, named numbers out; pure."""

from tutelage.diagnostics.details import detail_metrics
from tutelage.diagnostics.metrics import rollout_metrics
from tutelage.diagnostics.table import METRICS, POSITIONS, Metric
from tutelage.diagnostics.teacher_support import teacher_support_auroc

__all__ = ["METRICS", "POSITIONS", "Metric", "detail_metrics", "rollout_metrics", "teacher_support_auroc"]
