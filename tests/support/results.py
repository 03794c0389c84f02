"""The result of an evaluation, made up."""

from __future__ import annotations

from tutelage.evaluation import EvaluationResult

RESULT = EvaluationResult("sums", 4, 2, 1.0, 16, 0, 0.5, (0.25, 0.75), {1: 0.5}, 0.0, 9.0, 1.5)
