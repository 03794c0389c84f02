"""How good is it?  Several samples per problem, unbiased pass@k, and an interval around it."""

from tutelage.evaluation.evaluate import EvaluationSet, evaluate
from tutelage.evaluation.results import (
    EvaluationResult,
    EvaluationSample,
    rich_table,
    summarise,
    write_evaluation,
)
from tutelage.evaluation.statistics import bootstrap_interval, pass_at_k

__all__ = [
    "EvaluationResult",
    "EvaluationSample",
    "EvaluationSet",
    "bootstrap_interval",
    "evaluate",
    "pass_at_k",
    "rich_table",
    "summarise",
    "write_evaluation",
]
