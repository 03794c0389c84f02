"""Which prompts, and was the answer right?  Data sets, chat templates and verifiers."""

from tutelage.tasks.answers import THINKING_OPENS
from tutelage.tasks.associative_recall import IGNORED, AssociativeRecall, recall_lines
from tutelage.tasks.benchmarks import BENCHMARKS, Benchmark
from tutelage.tasks.chat import DroppedPromptsWarning, PromptStyle, RenderedPrompts, render, render_all
from tutelage.tasks.clock import TemplateClock
from tutelage.tasks.prefix_pool import prefix_pool, turn_shares
from tutelage.tasks.problems import (
    DEFAULT_ANSWER_COLUMN,
    DEFAULT_PRIVILEGED_TEMPLATE,
    DEFAULT_PROMPT_COLUMN,
    DEFAULT_SPLIT,
    Columns,
    Privilege,
    Problem,
    load_problems,
)
from tutelage.tasks.readers import PromptReader, PromptWarning, max_prompt_characters
from tutelage.tasks.sources import Row, check_text, excerpt, name_and_split, rows_of, short_name
from tutelage.tasks.templates import closing_text
from tutelage.tasks.verifiers import (
    DEFAULT_TASK,
    DEFAULT_TRUNCATED_ANSWERS,
    TruncatedAnswers,
    Verifier,
    VerifierWarning,
    check_verifier,
    verify,
)
from tutelage.tasks.voting import answer_classes

__all__ = [
    "Columns",
    "THINKING_OPENS",
    "BENCHMARKS",
    "IGNORED",
    "AssociativeRecall",
    "DEFAULT_ANSWER_COLUMN",
    "DEFAULT_PRIVILEGED_TEMPLATE",
    "DEFAULT_PROMPT_COLUMN",
    "DEFAULT_SPLIT",
    "DEFAULT_TASK",
    "DEFAULT_TRUNCATED_ANSWERS",
    "Benchmark",
    "Privilege",
    "Problem",
    "PromptWarning",
    "Row",
    "TemplateClock",
    "answer_classes",
    "check_text",
    "closing_text",
    "excerpt",
    "load_problems",
    "max_prompt_characters",
    "name_and_split",
    "prefix_pool",
    "recall_lines",
    "rows_of",
    "short_name",
    "turn_shares",
    "render",
    "render_all",
    "PromptReader",
    "PromptStyle",
    "RenderedPrompts",
    "DroppedPromptsWarning",
    "verify",
    "TruncatedAnswers",
    "Verifier",
    "VerifierWarning",
    "check_verifier",
]
