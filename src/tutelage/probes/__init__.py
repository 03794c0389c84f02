"""What would a run's policy do for its student?  Small experiments without any training."""

from tutelage.probes.budget import BudgetPoint, probe_budget
from tutelage.probes.continuation import ContinuationGain, probe_continuation
from tutelage.probes.parts import ProbeParts

__all__ = ["BudgetPoint", "ContinuationGain", "ProbeParts", "probe_budget", "probe_continuation"]
