"""How good is it?  Several samples per problem, unbiased pass@k, and an interval around it."""

from tutelage.evaluation.evaluate import GREEDY_SUFFIX, EvaluationSet, evaluate
from tutelage.evaluation.results import (
    Drawing,
    EvaluationResult,
    EvaluationSample,
    rich_table,
    summarise,
    write_evaluation,
)
from tutelage.evaluation.statistics import (
    bootstrap_interval,
    interval_of,
    pass_at_k,
    relative_gain_interval,
    t_interval,
    t_quantile,
)

__all__ = [
    "GREEDY_SUFFIX",
    "Drawing",
    "EvaluationResult",
    "EvaluationSample",
    "EvaluationSet",
    "bootstrap_interval",
    "evaluate",
    "interval_of",
    "pass_at_k",
    "relative_gain_interval",
    "rich_table",
    "summarise",
    "t_interval",
    "t_quantile",
    "write_evaluation",
]
