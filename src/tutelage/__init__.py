"""Train a small language model on its own rollouts against a stronger one (on-policy distillation).

A module of `tutelage.api` is loaded when one of its names is first asked for, so `import tutelage` takes no time.
"""

from __future__ import annotations

from importlib import import_module
from warnings import catch_warnings, filterwarnings

TYPE_CHECKING = False  # true for type checkers, by its name; `typing` would be most of the time of this import
if TYPE_CHECKING:
    from tutelage.api.checking import doctor, verify
    from tutelage.api.comparing import compare, sweep
    from tutelage.api.evaluating import Evaluation, evaluate
    from tutelage.api.exporting import export
    from tutelage.api.generating import BestOf, Generated, generate
    from tutelage.api.runs import SavedRun, StepCallback, open_run, resume, train
    from tutelage.api.scoring import score
    from tutelage.errors import RunInterrupted, TutelageError

__version__ = "0.1.0"

__all__ = [
    "BestOf",
    "Evaluation",
    "Generated",
    "RunInterrupted",
    "SavedRun",
    "StepCallback",
    "TutelageError",
    "__version__",
    "compare",
    "doctor",
    "evaluate",
    "export",
    "generate",
    "open_run",
    "resume",
    "score",
    "sweep",
    "train",
    "verify",
]

# Where a public name lives.
HOMES = {
    "tutelage.api.checking": ("doctor", "verify"),
    "tutelage.api.comparing": ("compare", "sweep"),
    "tutelage.api.evaluating": ("Evaluation", "evaluate"),
    "tutelage.api.exporting": ("export",),
    "tutelage.api.generating": ("BestOf", "Generated", "generate"),
    "tutelage.api.runs": ("SavedRun", "StepCallback", "open_run", "resume", "train"),
    "tutelage.api.scoring": ("score",),
    "tutelage.errors": ("RunInterrupted", "TutelageError"),
}


def __getattr__(name: str) -> object:
    for module, names in HOMES.items():
        if name in names:
            with catch_warnings():  # tqdm's, which others import, in a notebook without widgets
                filterwarnings("ignore", message="IProgress not found")
                return getattr(import_module(module), name)
    raise AttributeError(f"module 'tutelage' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
