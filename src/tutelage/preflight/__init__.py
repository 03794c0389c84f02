"""Will this run work?  A verdict per line on a run file, before the run costs anything."""

from tutelage.preflight.examine import CHEAP, COSTLY, early_warnings, examine
from tutelage.preflight.finding import Finding, Verdict

__all__ = ["CHEAP", "COSTLY", "Finding", "Verdict", "early_warnings", "examine"]
