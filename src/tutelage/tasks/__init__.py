"""Which prompts, and was the answer right?  Data sets, chat templates and verifiers."""

from tutelage.tasks.chat import DroppedPromptsWarning, RenderedPrompts, render, render_all
from tutelage.tasks.problems import Problem, load_problems
from tutelage.tasks.verifiers import Verifier, VerifierWarning, check_verifier, verify

__all__ = [
    "Problem",
    "load_problems",
    "render",
    "render_all",
    "RenderedPrompts",
    "DroppedPromptsWarning",
    "verify",
    "Verifier",
    "VerifierWarning",
    "check_verifier",
]
