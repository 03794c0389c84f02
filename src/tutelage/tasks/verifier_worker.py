"""The process in which `verifiers.py` has answers judged: a JSON line in, a JSON line out, until its input ends.

It is a process of its own because an answer such as 9^{9^{9^{9}}} keeps the algebra busy inside C code, where neither
signals nor threads can stop it, and takes all memory if it can. It is started by file name and imports nothing of
Tutelage, so that it is ready as soon as its judge is, and a crash in it is not a crash of the run.

    first line in   {"number", "task", "returns", "paths", "timeout_seconds", "memory_limit_bytes"}
               out  {"number", "error", "file"}
    then in         {"number", "arguments"}        out   {"number", "value", "error"}

A reply has the number of its message. Whatever a judge forks off has no pipe to reply through.
"""

from __future__ import annotations

import contextlib
import decimal
import functools
import importlib
import itertools
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import IO, Any

__all__ = ["is_correct", "main"]

Judge = Callable[..., Any]

# An orphan whose judge hangs never gets to see that its input ended: the kernel's alarm ends it, this much after the
# parent would have.
_ORPHAN_GRACE_SECONDS = 2.0


def is_correct(score: object) -> bool:
    """What a user's verdict means: True, or a score of at least 0.5 (so both 0/1 and -1/1 scores read as meant).

    Raises:
        TypeError: neither a truth value nor a number.
    """
    if score is None or isinstance(score, str | bytes):
        raise TypeError(f"the verifier returned {score!r}; expected True, False or a score from 0 to 1")
    return float(score) >= 0.5  # type: ignore[arg-type]


def as_score(score: object) -> float:
    """What a user's reward means: one number; True is 1.

    Raises:
        TypeError, ValueError: it is none.
    """
    if score is None or isinstance(score, str | bytes):
        raise TypeError(f"the function returned {score!r}; expected one number for the response")
    try:
        return float(score)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise TypeError(
            f"the function returned a {type(score).__name__}; expected one number for the response"
        ) from None


# What becomes of a judge's value, by the name that the parent gives it.
READ_AS: dict[str, Callable[[object], bool | float]] = {"verdict": is_correct, "score": as_score, "truth": bool}


def main() -> None:
    """Serve the requests on standard input until it ends."""
    # The pipe belongs to the protocol alone: what libraries print goes to standard error, and they read nothing.
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)

    own_id = os.getpid()
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: _leave_pipes(requests, replies))
    setup = json.loads(requests.readline())
    read = READ_AS[setup["returns"]]
    try:
        judge = _math_judge() if setup["task"] == "math" else _users_judge(setup["task"], setup["paths"])
    except BaseException as error:  # importing a user's module may raise anything, SystemExit included
        if os.getpid() == own_id:
            _reply(replies, {"number": setup["number"], "error": _describe(error)})
        os._exit(0)
    high_water_bytes = _virtual_bytes() + setup["memory_limit_bytes"] / 2
    _limit_memory(setup["memory_limit_bytes"])
    module = sys.modules.get(setup["task"].partition(":")[0])
    _reply(replies, {"number": setup["number"], "error": None, "file": getattr(module, "__file__", None)})

    for line in requests:
        _set_alarm(setup["timeout_seconds"] + _ORPHAN_GRACE_SECONDS)
        message = json.loads(line)
        try:
            value, failure = read(judge(*message["arguments"])), None
        except BaseException as error:
            value, failure = None, _describe(error)
        if os.getpid() != own_id:
            os._exit(0)  # a judge's child that came back here: the worker is its parent
        _set_alarm(0.0)
        _reply(replies, {"number": message["number"], "value": value, "error": failure})
        if _virtual_bytes() > high_water_bytes:
            break  # a fresh process has all its memory again; this one could fail right answers for lack of it
    os._exit(0)  # not through sys.exit: a user's threads could keep an orphan alive


def _leave_pipes(*pipes: IO[bytes]) -> None:
    """In a forked child: nothing that it does may be taken for the worker's, nor keep the worker's pipes open."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for pipe in pipes:
        os.dup2(nothing, pipe.fileno(), inheritable=False)
    os.close(nothing)


def _reply(replies: IO[bytes], message: dict[str, Any]) -> None:
    replies.write(json.dumps(message).encode() + b"\n")
    replies.flush()


def _describe(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:500]
    except BaseException:  # a user's exception whose __str__ fails
        return type(error).__name__


def _math_judge() -> Judge:
    logging.disable(logging.CRITICAL)  # math-verify warns that its time is not bounded; the parent bounds it
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, grader, parse, verify

    # It rounds to six places and drops what is below 1e-15, so that all tiny numbers would be one.
    theirs = grader.sympy_numeric_eq

    def same_number(one: Any, other: Any, *settings: Any) -> bool:
        verdict = _same_number(one, other)
        return bool(theirs(one, other, *settings)) if verdict is None else verdict

    grader.sympy_numeric_eq = same_number

    # Units are gone already; its own list has single letters in it, and would take 5c for 5.
    spelling = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="all")
    forms = (LatexExtractionConfig(normalization_config=spelling), ExprExtractionConfig())

    # no time-outs of its own: they need SIGALRM, which does not get through to C code and here guards against orphans
    @functools.lru_cache(maxsize=1024)
    def parse_boxed(text: str) -> Any:
        # a box is the one wrapping in which math-verify reads "$1$, $2$", "\$18.90" and "x = 5" alike
        return parse("\\boxed{" + text + "}", extraction_config=forms, parsing_timeout=None)

    def same(gold: Any, target: Any) -> bool:
        # a condition equals the set where it holds: 1 < x < 2 is (1, 2)
        return bool(verify(gold=gold, target=target, timeout_seconds=None, allow_set_relation_comp=True))

    def judge(candidate: str, reference: str) -> bool:
        # the order matters: math-verify lets the gold answer decide how the other is read
        gold, target = parse_boxed(reference), parse_boxed(candidate)
        in_one_form = (_in_one_form(*pair) for pair in itertools.product(gold, target))
        return same(gold, target) or any(same(*pair) for pair in in_one_form if pair is not None)

    judge("y + x", "x + y")  # the first one builds the grammar's tables, which is no answer's fault
    return judge


def _same_number(one: Any, other: Any) -> bool | None:
    """Whether two terms without variables have the same value, and two with some the same coefficients; None = neither.

    Exact numbers are compared exactly, however small. A decimal fraction of six digits or more was rounded, as in
    `quantities.py`.
    """
    import sympy

    if not isinstance(one, sympy.Expr) or not isinstance(other, sympy.Expr):
        return None  # matrices, element by element
    if any(term.has(sympy.UnevaluatedExpr) for term in (one, other)):
        return None  # percentages
    one, other = one.doit(), other.doit()
    if one.is_Rational and other.is_Rational:
        return bool(one == other)
    if one.free_symbols or other.free_symbols:
        size = max(map(_largest_coefficient, (one, other)))
        return bool(_largest_coefficient(one - other) <= size * sympy.Float("1e-14"))
    slack = max(_rounding(one), _rounding(other), key=lambda term: sympy.N(term))
    return bool(abs(sympy.N(one - other, 30, maxn=200)) <= sympy.N(slack))


def _largest_coefficient(term: Any) -> Any:
    import sympy

    return max((abs(c) for c in sympy.expand(term).evalf(30).as_coefficients_dict().values()), default=sympy.Integer(0))


def _rounding(number: Any) -> Any:
    """By how much a number may be off: half a unit of a decimal fraction's last place, or the noise of computing it."""
    import sympy

    if not number.has(sympy.Float):
        return abs(number) * sympy.Float("1e-40")  # what remains of a difference of equal numbers
    digits = decimal.Decimal(repr(float(number)) if number.is_Float else 0).normalize().as_tuple()
    places = digits.exponent if isinstance(digits.exponent, int) else 0
    is_rounded = places < 0 and len(digits.digits) >= 6
    half = sympy.Rational(10) ** places / 2 if is_rounded else sympy.Integer(0)
    return sympy.Max(half, abs(number) * sympy.Float("1e-14"))


def _in_one_form(one: Any, other: Any) -> tuple[Any, Any] | None:
    """Both as points, where one is a row or a column; both as sets, where one is several conditions; or None."""
    import sympy

    def as_point(term: Any) -> Any:
        if isinstance(term, sympy.MatrixBase) and 1 in term.shape:
            return sympy.Tuple(*term)
        is_pair = isinstance(term, sympy.Interval) and term.left_open and term.right_open
        return sympy.Tuple(term.start, term.end) if is_pair else term

    def are_conditions(term: Any) -> bool:
        return isinstance(term, sympy.FiniteSet) and all(isinstance(c, sympy.core.relational.Relational) for c in term)

    if isinstance(one, sympy.MatrixBase) != isinstance(other, sympy.MatrixBase):
        return as_point(one), as_point(other)
    if are_conditions(one) != are_conditions(other) and isinstance(one, sympy.Set) and isinstance(other, sympy.Set):
        sets = (sympy.Union(*(c.as_set() for c in term)) if are_conditions(term) else term for term in (one, other))
        return next(sets), next(sets)
    return None


def _users_judge(task: str, paths: list[str]) -> Judge:
    module_name, _, function_name = task.partition(":")
    sys.path[:] = paths
    judge = functools.reduce(getattr, function_name.split("."), importlib.import_module(module_name))
    if not callable(judge):
        raise TypeError(f"{task} is a {type(judge).__name__}, not a function")
    return judge


def _limit_memory(limit_bytes: int) -> None:
    """Cap what the process may map on top of what its imports did, where the system can."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # not on Windows; a stricter limit may be in force
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (_virtual_bytes() + limit_bytes,) * 2)


def _virtual_bytes() -> int:
    """Address space in use, or 0 where the system does not say."""
    try:
        with open("/proc/self/statm", "rb") as statm:  # noqa: PTH123
            return int(statm.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _set_alarm(seconds: float) -> None:
    """Have the kernel end this process after so many seconds; 0 = not any more."""
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # the default action needs no Python to run
        signal.setitimer(signal.ITIMER_REAL, seconds)


if __name__ == "__main__":
    main()
