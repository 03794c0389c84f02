"""Which grader says of an answer what a careful person would, and how fast?

    python benchmarks/verifier.py [--data FOLDER] [--json FILE]
        [--grader NAME=FILE.py:FUNCTION ...] [--comparer NAME=FILE.py:FUNCTION ...]

Puts the tables of `tests/support/verdict_tables.py` to our verifier, to math-verify alone, and to any others that
you bring: a grader is a function of (response, reference), a comparer one of (answer, reference), which is given the
answer that we find in the response. Either may return a truth value, a score (right from 0.5 up) or a dictionary with
"acc". What raises or takes longer than 5 seconds is wrong. With `--data`, a folder of JSONL files with an `answer`
column: every answer must equal itself in several wrappings, and hardly ever the next one. Prints: right answers judged
wrong, wrong ones judged right, seconds.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import runpy
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tutelage.tasks import Verifier
from tutelage.tasks.answers import final_answer, reference_answer
from tutelage.tasks.notation import clean

TABLES = Path(__file__).parents[1] / "tests" / "support" / "verdict_tables.py"
NAMES = ("COLLECTED", "HELD_OUT", "WRITTEN_AFTER")
SECONDS = 5
WRAPPINGS = (
    r"So it is \boxed{%s}.",
    "The answer is %s.",
    "Hence $%s$.",
    r"\[ %s \]",
    "<answer>%s</answer>",
    "The final answer is $%s$. I hope it is correct.",
    r"<think>Or 9?</think> \boxed{%s}",
)

Grader = Callable[[str, str], Any]


def math_verify_alone() -> Grader:
    """As its documentation has it: the reference as LaTeX, the response as it stands."""
    from math_verify import parse, verify

    def grade(response: str, reference: str) -> bool:
        is_solution = "boxed" in reference or "####" in reference or reference.startswith("$")
        gold = parse(reference if is_solution else f"${reference}$", parsing_timeout=None)
        return bool(verify(gold, parse(response, parsing_timeout=None), timeout_seconds=None))

    return grade


def brought(where: str, is_comparer: bool) -> Grader:
    """A function from another file."""
    path, _, function = where.rpartition(":")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    judge: Grader = getattr(module, function)
    return (
        judge
        if not is_comparer
        else lambda response, reference: judge(clean(final_answer(response) or ""), clean(reference_answer(reference)))
    )


def verdict(grader: Grader, response: str, reference: str) -> bool:
    signal.alarm(SECONDS)
    with suppress(Exception):
        try:
            said = grader(response, reference)
            said = said.get("acc", said.get("score")) if isinstance(said, dict) else said
            return float(said) >= 0.5
        finally:
            signal.alarm(0)
    return False


def judged(grader: Grader, cases: Iterable[tuple[str, str, str, bool]]) -> tuple[int, int, float]:
    started, missed, loose = time.perf_counter(), 0, 0
    for _, response, reference, is_right in cases:
        found = verdict(grader, response, reference)
        missed += is_right and not found
        loose += found and not is_right
    return missed, loose, time.perf_counter() - started


def wrapped(answers: list[str]) -> list[tuple[str, str, str, bool]]:
    """Each answer in each wrapping against itself, and in a box against the next one, which it hardly ever equals."""
    cases = []
    for answer, other in zip(answers, answers[1:] + answers[:1], strict=True):
        bare = answer[1:-1] if answer.startswith("$") and answer.endswith("$") else answer
        if "$" not in bare:
            cases += [("", wrapping.replace("%s", bare), answer, True) for wrapping in WRAPPINGS]
            cases += [("", WRAPPINGS[0].replace("%s", bare), other, False)] if other != answer else []
    return cases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grader", action="append", default=[])
    parser.add_argument("--comparer", action="append", default=[])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--limit", type=int, default=200, help="answers of a file that are wrapped")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    def ring(*_: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, ring)
    tables = {name: runpy.run_path(str(TABLES))[name] for name in NAMES}
    if arguments.data is not None:
        for path in sorted(arguments.data.glob("*.jsonl")):
            answers = [json.loads(line)["answer"] for line in path.read_text(encoding="utf-8").splitlines()]
            tables[path.stem] = wrapped(answers[: arguments.limit])
    with Verifier("math") as ours:
        graders: dict[str, Grader] = {"ours": ours.verify, "math-verify alone": math_verify_alone()}
        for option, is_comparer in ((arguments.grader, False), (arguments.comparer, True)):
            graders |= {name: brought(where, is_comparer) for name, _, where in (g.partition("=") for g in option)}
        results = []
        for name, grader in graders.items():
            verdict(grader, r"\boxed{x+1}", "1+x")  # whatever is loaded first
            for table, cases in tables.items():
                missed, loose, seconds = judged(grader, cases)
                results.append({"grader": name, "table": table, "of": len(cases), "missed": missed, "loose": loose})
                print(
                    f"{name:24} {table:14} {len(cases):5} answers: {missed:4} right judged wrong,"
                    f" {loose:3} wrong judged right, {seconds:6.1f} s",
                    flush=True,
                )
                results[-1]["seconds"] = round(seconds, 2)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
