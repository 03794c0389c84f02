"""Which metrics come from where."""

from __future__ import annotations

from tutelage.diagnostics import METRICS

# Metrics of whole batches and of losses on tokens, which no function of rollouts alone computes.
_FAMILIES = (
    "group_share_",
    "train_pass_at_",
    "advantage_",
    "ratio_",
    "sequence_ratio_",
    "clip_share_",
    "correction_",
)
OF_BATCHES = {"teacher_support_auroc", "memory_gib", "zero_spread_share"}
OF_BATCHES |= {name for name in METRICS if name.startswith(_FAMILIES)}
