"""How good is it?  Several samples per problem, unbiased pass@k, and an interval around it; what selection adds."""

from tutelage.evaluation.best_of import (
    best_of_distribution,
    best_of_kl,
    best_of_kl_bound,
    best_of_mean,
    best_of_weights,
    exponential_tilt,
    tilt_kl,
    tilt_with_kl,
)
from tutelage.evaluation.changes import changes_since, retained_mass
from tutelage.evaluation.evaluate import GREEDY_SUFFIX, EvaluationSet, Marked, evaluate, mark
from tutelage.evaluation.forecast import Forecast, check_forecast, forecast_best_of, forecast_pass_at_k
from tutelage.evaluation.readings import TextResult, TextSet
from tutelage.evaluation.results import (
    Drawing,
    EvaluationResult,
    EvaluationSample,
    forecast_table,
    reading_table,
    rich_table,
    selection_table,
    summarise,
    write_evaluation,
)
from tutelage.evaluation.selected import SelectedResult, forecasts_of, summarise_selected
from tutelage.evaluation.selection import SELECTIONS, Candidates, Selection, selections_named
from tutelage.evaluation.statistics import (
    bootstrap_interval,
    interval_of,
    pass_at_k,
    relative_gain_interval,
    t_interval,
    t_quantile,
)

__all__ = [
    "Candidates",
    "Drawing",
    "EvaluationResult",
    "EvaluationSample",
    "EvaluationSet",
    "Forecast",
    "GREEDY_SUFFIX",
    "Marked",
    "SELECTIONS",
    "SelectedResult",
    "Selection",
    "TextResult",
    "TextSet",
    "best_of_distribution",
    "best_of_kl",
    "best_of_kl_bound",
    "best_of_mean",
    "best_of_weights",
    "bootstrap_interval",
    "check_forecast",
    "changes_since",
    "evaluate",
    "exponential_tilt",
    "forecast_best_of",
    "forecast_pass_at_k",
    "forecast_table",
    "forecasts_of",
    "interval_of",
    "mark",
    "pass_at_k",
    "reading_table",
    "relative_gain_interval",
    "retained_mass",
    "rich_table",
    "selection_table",
    "selections_named",
    "summarise",
    "summarise_selected",
    "t_interval",
    "t_quantile",
    "tilt_kl",
    "tilt_with_kl",
    "write_evaluation",
]
