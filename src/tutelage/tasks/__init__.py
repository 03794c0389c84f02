"""Which prompts, and was the answer right?  Data sets, chat templates and verifiers."""

from tutelage.tasks.benchmarks import BENCHMARKS, Benchmark
from tutelage.tasks.chat import DroppedPromptsWarning, RenderedPrompts, closing_text, render, render_all
from tutelage.tasks.problems import Problem, load_problems
from tutelage.tasks.sources import excerpt, rows_of, short_name
from tutelage.tasks.verifiers import Verifier, VerifierWarning, check_verifier, verify

__all__ = [
    "BENCHMARKS",
    "Benchmark",
    "Problem",
    "closing_text",
    "excerpt",
    "load_problems",
    "rows_of",
    "short_name",
    "render",
    "render_all",
    "RenderedPrompts",
    "DroppedPromptsWarning",
    "verify",
    "Verifier",
    "VerifierWarning",
    "check_verifier",
]
