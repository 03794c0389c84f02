"""Rewards that run in a process of their own, as a user's verifier does: its time and memory are bounded, and what it
does to its process it does not do to the run's."""

from __future__ import annotations

import math
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tutelage.errors import ConfigurationError, RewardError, check_inside
from tutelage.files import sha256_of
from tutelage.rewards.base import Answers, Judge, Reward, RewardWarning, Setting
from tutelage.tasks.verifier_process import WorkerProcess, check_function_name

__all__ = ["Format", "Function"]

MEMORY_GIB = 4.0


@dataclass(frozen=True)
class Format(Reward):
    """1 for a response that matches a regular expression as a whole, else 0.

    The expression is Python's, and its `.` matches line breaks. One that is not decided in time, as may happen where
    repetitions are nested, counts as 0 with one warning.

    Fields:
      pattern: such as "<think>.*</think>.*".
      timeout_seconds: for one response.
    """

    pattern: str
    timeout_seconds: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_seconds(self.timeout_seconds)
        try:
            re.compile(self.pattern, re.DOTALL)
        except (re.error, OverflowError, RecursionError) as problem:
            raise ConfigurationError(
                f"reward.pattern is {self.pattern!r}, which is no regular expression ({problem}); expected one of "
                "Python's. Characters such as ( and [ are escaped with a backslash; in TOML, use single quotes."
            ) from problem

    def opened(self, setting: Setting) -> Judge:
        worker = WorkerProcess(
            "re:fullmatch",
            timeout_seconds=self.timeout_seconds,
            memory_limit_gib=MEMORY_GIB,
            returns="truth",
            key="reward.pattern",
        )
        has_warned = False

        def matches(text: str) -> float:
            nonlocal has_warned
            reply = worker.ask(self.pattern, text, int(re.DOTALL))
            if reply.failure is not None and not has_warned:
                has_warned = True
                warnings.warn(
                    f"the reward {self.label!r} is 0 for a response that was not decided ({reply.failure}); expected "
                    "an expression that is quick on any text. Others may follow without another warning. Avoid nested "
                    "repetitions such as (a+)+, or use possessive ones, (a++)+.",
                    RewardWarning,
                    stacklevel=2,
                )
            return float(bool(reply.value))

        return lambda answers: torch.tensor([matches(text) for text in answers.responses], dtype=torch.float64)


@dataclass(frozen=True)
class Function(Reward):
    """What a function of the user says: (prompt, response, answer) -> a number, one answer at a time.

    prompt is the problem's text as the data has it, response all that the model wrote, without special tokens, and
    answer the right answer verbatim, or None where there is none. True counts as 1. The function must have a number for
    any text: one that raises, takes too long, ends its process or returns something else ends the run, which is saved.

    Fields:
      function: "module:function", imported from the directory of the command or the installed packages.
      timeout_seconds: for one answer.
      memory_limit_gib: what it may take on top of its imports; enforced on Linux.
    """

    function: str
    timeout_seconds: float = 5.0
    memory_limit_gib: float = MEMORY_GIB

    def __post_init__(self) -> None:
        super().__post_init__()
        check_function_name(self.function, "reward.function")
        _check_seconds(self.timeout_seconds)
        limit = self.memory_limit_gib
        check_inside(limit, "reward.memory_limit_gib", 0 < limit < math.inf, "a finite number of GiB above 0")

    @property
    def reads_answer(self) -> bool:
        return True

    def check(self, setting: Setting) -> dict[str, Any]:
        worker = self._worker()
        try:
            worker.start()
            return {} if worker.file is None else {"module": f"sha256 {sha256_of(Path(worker.file))}"}
        finally:
            worker.close()

    def opened(self, setting: Setting) -> Judge:
        worker = self._worker()

        def judge(answers: Answers) -> Tensor:
            values = []
            for problem, response in zip(answers.problems, answers.responses, strict=True):
                reply = worker.ask(problem.text, response, problem.answer)
                if reply.value is None:
                    raise RewardError(
                        f"the reward {self.label!r} ({self.function}) has no number for an answer to problem "
                        f"{problem.id}: {reply.failure}; expected one for any text, within "
                        f"{self.timeout_seconds:g} seconds. Make the function handle it. The answer begins "
                        f"{response[:80]!r}."
                    )
                values.append(reply.value)
            return torch.tensor(values, dtype=torch.float64)

        return judge

    def _worker(self) -> WorkerProcess:
        return WorkerProcess(
            self.function,
            timeout_seconds=self.timeout_seconds,
            memory_limit_gib=self.memory_limit_gib,
            returns="score",
            key="reward.function",
        )


def _check_seconds(seconds: float) -> None:
    check_inside(seconds, "reward.timeout_seconds", 0 < seconds < math.inf, "a finite number of seconds above 0")
