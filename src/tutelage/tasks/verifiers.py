r"""Decides whether a response gives the right answer: total on any text, and bounded in time and memory.

    "math"             the final answer (last \boxed{...}, or else last number) equals the reference, mathematically
    "exact"            the last \boxed{...}, or else the last line, is the reference letter for letter
                       both look at what follows the thinking, </think>; a thinking that does not end has no answer
    "module:function"  a function of the user, (response, answer) -> bool or a score, correct from 0.5 up
    a callable         the same, called right here: no bound on its time

Numbers and equal texts are compared at once (`answers.py`); algebra and a user's named function run in a worker process
(`verifier_process.py`). What kills, crashes or hangs the worker is a wrong answer. Rewards other than right and wrong
are not here.
"""

from __future__ import annotations

import difflib
import importlib.util
import warnings
from collections.abc import Callable, Iterable
from typing import Literal

from tutelage.errors import ConfigurationError
from tutelage.tasks.answers import exact_answer, exact_match, final_answer, reference_answer
from tutelage.tasks.equality import compare_plainly, for_algebra
from tutelage.tasks.verifier_process import USERS_TASK, Reply, WorkerProcess
from tutelage.tasks.verifier_worker import is_correct

__all__ = ["Task", "TruncatedAnswers", "Verifier", "VerifierWarning", "check_verifier", "verify"]

UserFunction = Callable[[str, str], bool | float]
Task = str | UserFunction
# What counts of a response that was cut at the length limit: what is whole in it, nothing, or all its text.
TruncatedAnswers = Literal["whole", "wrong", "as_text"]

DEFAULT_TASK = "math"
DEFAULT_TRUNCATED_ANSWERS: TruncatedAnswers = "whole"

_OWN_TASKS = ("math", "exact")


class VerifierWarning(UserWarning):
    """A user's verifier failed on a response, which was counted as wrong."""


def verify(task: Task, response: str, answer: str) -> bool:
    r"""Whether a response gives the right answer.

    Never raises on any text, and decides within about five seconds (a callable takes its own time). The worker process
    that some tasks need is kept for the next call and ends with the program; use a `Verifier` for other bounds.

    Args:
        task: "math", "exact", "module:function" or a callable; see the top of this file.
        response: all that the model wrote.
        answer: the right answer; for "math" also a solution that ends in \boxed{...} or "#### ...".
    Raises:
        ConfigurationError: the task itself cannot be used.
    """
    if not isinstance(task, str):
        return Verifier(task).verify(response, answer)
    if task not in _kept_verifiers:
        _kept_verifiers[task] = Verifier(task)
    return _kept_verifiers[task].verify(response, answer)


_kept_verifiers: dict[str, Verifier] = {}


def check_verifier(task: Task) -> None:
    """Refuse a task that cannot work, before any compute is spent; a user's named function is imported in a worker.

    Raises:
        ConfigurationError: an unknown name, a function that cannot be imported, or math-verify not installed.
    """
    with Verifier(task) as verifier:
        verifier.check()


class Verifier:
    """One task with its worker process, which starts when first needed; use it in a `with`, or call `close`.

    Threads may share it; they take turns. A forked child gets a worker of its own.

    Args:
        task: "math", "exact", "module:function" or a callable; see the top of this file.
        timeout_seconds: bound for one answer in the worker, not counting the worker's start; none for a callable.
        memory_limit_gib: what the worker may take on top of its imports; enforced on Linux.
        truncated: what counts of a response that was cut at the length limit. "whole" = an answer that cannot have been
            on its way to another, in a box or a tag that is closed; a user's function gets the text. "wrong" = nothing.
            "as_text" = it is judged as if it had ended.
    Attributes:
        num_timeouts: answers counted as wrong because they took too long. If it is more than a few in a thousand, look
            whether the machine is overloaded.
    Raises:
        ConfigurationError: an unknown task, or a bound that is not positive.
    """

    def __init__(
        self,
        task: Task = DEFAULT_TASK,
        *,
        timeout_seconds: float = 5.0,
        memory_limit_gib: float = 4.0,
        truncated: TruncatedAnswers = DEFAULT_TRUNCATED_ANSWERS,
    ) -> None:
        _check_name(task)
        for name, bound in (("timeout_seconds", timeout_seconds), ("memory_limit_gib", memory_limit_gib)):
            if not bound > 0:
                raise ConfigurationError(
                    f"{name} of a verifier is {bound}; expected more than 0. Use 5 seconds and 4 GiB if in doubt."
                )
        self.task = task
        self.truncated = truncated
        self.num_timeouts = 0
        self._has_warned = False
        self._worker = WorkerProcess(str(task), timeout_seconds=timeout_seconds, memory_limit_gib=memory_limit_gib)

    def __enter__(self) -> Verifier:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the worker, if there is one; a later call would start another."""
        self._worker.close()

    def check(self) -> None:
        """Refuse a task whose judge cannot be loaded.

        Raises:
            ConfigurationError: with the reason.
        """
        if self.task == "math" and importlib.util.find_spec("math_verify") is None:
            raise ConfigurationError(
                'data.verifier is "math", but math-verify is not installed; expected it to be.'
                " Run: pip install math-verify"
            )
        if isinstance(self.task, str) and self.task not in _OWN_TASKS:
            self._worker.start()

    def verify_many(self, pairs: Iterable[tuple[str, str]]) -> list[bool]:
        """Verdicts on (response, answer) pairs, in their order."""
        return [self.verify(response, answer) for response, answer in pairs]

    def verify(self, response: str, answer: str, *, finished: bool = True) -> bool:
        """Whether the response gives the right answer; see the function `verify`. Not finished = cut at the limit."""
        if not finished and self.truncated == "wrong":
            return False
        is_whole = finished or self.truncated == "as_text"
        if self.task == "exact":
            return exact_match(response, answer, finished=is_whole)
        if self.task == "math":
            return self._verify_math(final_answer(response, finished=is_whole), reference_answer(answer))
        return self._verify_by_user(response, answer)

    def final_answer(self, response: str, *, finished: bool = True) -> str | None:
        """What the task compares with the right answer; None = the response has no answer.

        A user's function says nothing of that; for it, it is what "math" compares, or else what "exact" does.
        """
        if not finished and self.truncated == "wrong":
            return None
        is_whole = finished or self.truncated == "as_text"
        found = None if self.task == "exact" else final_answer(response, finished=is_whole)
        return found if found is not None or self.task == "math" else exact_answer(response, finished=is_whole)

    def _verify_math(self, candidate: str | None, reference: str) -> bool:
        if candidate is None:
            return False
        plain = compare_plainly(candidate, reference)
        if plain is not None:
            return plain
        # The algebra often fails on what models write, so its reason is not reported.
        return bool(self._ask_worker(*for_algebra(candidate, reference)).value)

    def _verify_by_user(self, response: str, answer: str) -> bool:
        if isinstance(self.task, str):
            verdict = self._ask_worker(response, answer)
        else:
            try:
                verdict = Reply(is_correct(self.task(response, answer)))
            except Exception as error:
                verdict = Reply(None, f"{type(error).__name__}: {error}")
        if verdict.failure is not None and not self._has_warned:
            self._has_warned = True
            name = repr(self.task) if isinstance(self.task, str) else getattr(self.task, "__qualname__", self.task)
            warnings.warn(
                f"the verifier {name} failed on a response ({verdict.failure}); expected a verdict on any. The response"
                " counts as wrong, and so will others, without another warning. Make the function handle it.",
                VerifierWarning,
                stacklevel=3,
            )
        return bool(verdict.value)

    def _ask_worker(self, response: str, answer: str) -> Reply:
        reply = self._worker.ask(response, answer)
        self.num_timeouts += reply.timed_out
        return reply


def _check_name(task: Task) -> None:
    if task in _OWN_TASKS or callable(task) or (isinstance(task, str) and USERS_TASK.fullmatch(task)):
        return
    nearest = difflib.get_close_matches(task, _OWN_TASKS, n=1) if isinstance(task, str) else []
    remedy = (
        f"Did you mean {nearest[0]!r}?"
        if nearest
        else 'A function of your own is named like "my_package.rewards:check".'
    )
    raise ConfigurationError(
        f'data.verifier is {task!r}; expected "math", "exact", "module:function" or a callable. {remedy}'
    )
