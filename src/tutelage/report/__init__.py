"""What does a run look like?  Figures drawn from the files of finished or running runs; nothing else is read."""

from tutelage.report.curves import plot_run, plot_runs
from tutelage.report.records import read_jsonl
from tutelage.report.sparkline import sparkline

__all__ = ["plot_run", "plot_runs", "read_jsonl", "sparkline"]
