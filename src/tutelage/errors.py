"""Everything that Tutelage raises on purpose, as one tree.

    TutelageError
    ├── ConfigurationError          (ValueError)       a field of a part or of a run file cannot be what it is
    ├── DataError                   (ValueError)       prompts or problems that cannot be used
    ├── ModelError                  (ValueError)       a model or tokenizer that cannot be loaded or served
    │   ├── VocabularyMismatchError                    student and teacher do not use the same tokens
    │   └── UnsupportedArchitectureError               the decoding engine cannot serve this kind of attention
    ├── OutputExistsError           (FileExistsError)  we would have to overwrite something that a user made
    ├── CheckpointError             (RuntimeError)     a checkpoint could not be written or read
    ├── EmptyBatchError             (ValueError)       no response token to learn from
    ├── ZeroMassError               (ValueError)       a distribution without any mass where some is needed
    ├── NonFiniteError              (ArithmeticError)  a loss, gradient, weight or moment is NaN or infinite
    ├── WorkerLostError             (RuntimeError)     another process of the run is gone
    ├── RewardError                 (RuntimeError)     a reward has no number for an answer
    ├── ServerError                 (ConnectionError)  a server or engine that computes for us is gone, or refuses
    └── RunInterrupted              (RuntimeError)     Ctrl-C or SIGTERM, after the run was saved

A message has three parts: what we got, what we expected, what to do about it. Each class also inherits the builtin
that it refines, so that `except ValueError` keeps working without knowledge of this file.
"""

import re

__all__ = [
    "CheckpointError",
    "ConfigurationError",
    "DataError",
    "EmptyBatchError",
    "ModelError",
    "NonFiniteError",
    "OutputExistsError",
    "RewardError",
    "RunInterrupted",
    "ServerError",
    "TutelageError",
    "UnsupportedArchitectureError",
    "VocabularyMismatchError",
    "WorkerLostError",
    "ZeroMassError",
    "check_inside",
    "in_short",
    "printable",
]

# Characters that a terminal or a page obeys instead of showing, or shows as others: C0 (but tab and line break), DEL,
# C1, marks and overrides of the writing direction, separators that end a line for some readers, byte order marks,
# letters without a shape, what is no character, and halves of surrogate pairs, which no encoding can write. Joiners
# stay: words and emoji need them.
UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\ufeff\ufff9-\ufffb\ufffe\uffff\ud800-\udfff\U000e0000-\U000e007f]"
)
MAX_QUOTED = 500  # letters of a foreign message in one of ours


class TutelageError(Exception):
    """Root of the tree: catch this to catch everything that Tutelage raises on purpose."""

    is_reported = False  # another process of the run has already reported it


class ConfigurationError(TutelageError, ValueError):
    """A field of a part or of a run file has a value that cannot work."""


class DataError(TutelageError, ValueError):
    """A prompt or problem source is missing, empty or malformed."""


class ModelError(TutelageError, ValueError):
    """A model or its tokenizer cannot be loaded or served."""


class VocabularyMismatchError(ModelError):
    """Student and teacher do not share one tokenizer, so their distributions cannot be compared."""


class UnsupportedArchitectureError(ModelError):
    """The paired engine's cache cannot serve this architecture."""


class OutputExistsError(TutelageError, FileExistsError):
    """The output already exists; nothing a user made is ever overwritten."""


class CheckpointError(TutelageError, RuntimeError):
    """A checkpoint could not be written or read; the previous one is untouched."""


class EmptyBatchError(TutelageError, ValueError):
    """A loss was asked for over no token at all."""


class ZeroMassError(TutelageError, ValueError):
    """A distribution has no mass on the support where it must be normalised."""


class NonFiniteError(TutelageError, ArithmeticError):
    """A loss, a gradient, or a weight or moment after an update became NaN or infinite; nothing of it is saved."""


class WorkerLostError(TutelageError, RuntimeError):
    """Another process of the run has ended, or cannot be reached."""


class RewardError(TutelageError, RuntimeError):
    """A reward failed on an answer, took too long, or gave no finite number; the run has been saved."""


class ServerError(TutelageError, ConnectionError):
    """A server or engine that computes for us does not answer, or refuses what it was asked."""


class RunInterrupted(TutelageError, RuntimeError):
    """The run was asked to stop; it has been saved and can be resumed."""


def in_short(problem: BaseException) -> str:
    """A foreign exception as part of one of our messages: its first line, else its class."""
    lines = str(problem).strip().splitlines()
    text = printable(lines[0] if lines else type(problem).__name__).rstrip(".")
    return text if len(text) <= MAX_QUOTED else f"{text[:MAX_QUOTED]}..."


def printable(text: str) -> str:
    """A text whose characters that would act on a terminal are written out: an escape sequence as `\\x1b[31m`."""
    return UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


def check_inside(value: float, key: str, is_inside: bool, expected: str) -> None:
    """Refuse the number of a part's field with what was expected of it; NaN is never inside.

    Raises:
      ConfigurationError: `is_inside` is false. The field is named by its full key, such as "divergence.skew".
    """
    if not is_inside:
        raise ConfigurationError(f"{key} is {value:g}; expected {expected}. Leave it out for the default.")
