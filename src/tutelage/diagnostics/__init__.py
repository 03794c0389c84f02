"""What happened in a rollout?  Rollouts in, named numbers out; pure."""

from tutelage.diagnostics.details import detail_metrics
from tutelage.diagnostics.metrics import rollout_metrics
from tutelage.diagnostics.table import METRICS, POSITIONS, Metric
from tutelage.diagnostics.teacher_support import auroc, support_score, teacher_support_auroc

__all__ = [
    "METRICS",
    "POSITIONS",
    "Metric",
    "auroc",
    "detail_metrics",
    "rollout_metrics",
    "support_score",
    "teacher_support_auroc",
]
