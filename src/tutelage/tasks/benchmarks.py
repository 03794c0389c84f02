"""Benchmarks by name: which hub data set, and which of its columns hold the question and the answer.

A file on disk takes precedence over a name, so a local `gsm8k` replaces the hub's.
"""

from __future__ import annotations

from dataclasses import dataclass

from tutelage.tasks.problems import DEFAULT_ANSWER_COLUMN, DEFAULT_PROMPT_COLUMN

__all__ = ["BENCHMARKS", "Benchmark"]


@dataclass(frozen=True)
class Benchmark:
    """Where a benchmark lives.

    Fields:
      path: hub id, with a configuration after a colon where the data set has several.
      split, prompt_column, answer_column: of that data set.
    """

    path: str
    split: str = "test"
    prompt_column: str = DEFAULT_PROMPT_COLUMN
    answer_column: str = DEFAULT_ANSWER_COLUMN


BENCHMARKS: dict[str, Benchmark] = {
    "gsm8k": Benchmark("openai/gsm8k:main", prompt_column="question"),
    "math500": Benchmark("HuggingFaceH4/MATH-500"),
    "aime24": Benchmark("HuggingFaceH4/aime_2024", split="train"),
}
