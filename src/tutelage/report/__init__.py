"""What does a run look like?  Figures drawn from the files of finished or running runs; nothing else is read."""

from tutelage.report.bands import Point, plot_methods, plot_sweep
from tutelage.report.card import model_card
from tutelage.report.curves import plot_run, plot_runs
from tutelage.report.lines import read_jsonl
from tutelage.report.page import Report, default_path, watch_report, write_report
from tutelage.report.probes import plot_budget, plot_continuation
from tutelage.report.records import (
    Columns,
    Curve,
    RunRecords,
    curve,
    evaluation_curve,
    greedy_names,
    mean_and_spread,
    pass_at_1_curve,
    read_run,
)
from tutelage.report.sparkline import sparkline
from tutelage.report.style import check_figure_format

__all__ = [
    "Columns",
    "Curve",
    "Point",
    "Report",
    "RunRecords",
    "check_figure_format",
    "default_path",
    "curve",
    "evaluation_curve",
    "greedy_names",
    "mean_and_spread",
    "model_card",
    "pass_at_1_curve",
    "plot_budget",
    "plot_continuation",
    "plot_methods",
    "plot_run",
    "plot_runs",
    "plot_sweep",
    "read_jsonl",
    "read_run",
    "sparkline",
    "watch_report",
    "write_report",
]
