"""All checks, one after the other: those that cost nothing first, then those that need the models' weights.

A check is a function of the run. What it refuses (our own errors) becomes a line like any other finding. Checks that
depend on the refused part are skipped, with a line of their own. So one examination shows everything that is wrong and
not only the first thing.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial

from tutelage.config import RunAssembly, RunConfig
from tutelage.errors import TutelageError, in_short
from tutelage.preflight import budget, data, rating, recurrent, tokens, trial
from tutelage.preflight import servers as serving
from tutelage.preflight.finding import Finding, Verdict

__all__ = ["CHEAP", "COSTLY", "RATED", "RATED_COSTLY", "Check", "early_warnings", "examine"]

Check = Callable[..., Finding]

TEXTS: Mapping[str, Check] = {
    "run file": data.run_file,
    "tokenizers": tokens.tokenizers,
    "vocabulary": tokens.sizes,
    "stop ids": tokens.stops,
    "prompts": tokens.prompts,
    "end of answer": tokens.closing,
    "contexts": data.contexts,
    "lengths": data.lengths,
    "verifier": data.references,
    "contamination": data.contamination,
}
BUDGET: Mapping[str, Check] = {"memory": budget.memory, "disk": budget.disk}
CHEAP: Mapping[str, Check] = {**TEXTS, **BUDGET}
"""Checks that read files and no weights."""

SERVED: Mapping[str, Check] = {"servers": serving.servers}
"""Checks of runs in which a server computes."""

HYBRID: Mapping[str, Check] = {"recurrent layers": recurrent.form}
"""Checks of runs in which a model has recurrent layers."""

RATED: Mapping[str, Check] = {"rewards": rating.rewards}
RATED_COSTLY: Mapping[str, Check] = {"reward spread": rating.spread}
"""Checks of runs with [[reward]]: those that read no weights, and those that do."""

COSTLY: Mapping[str, Check] = {
    "own teacher": trial.own_teacher,
    "overlap": trial.overlap,
    "pass@1": trial.solving,
    "time": budget.time_per_step,
}
"""Checks that load both models."""

# What `train` checks by itself, on the first prompts: the cheap checks that are not refusals of its own.
EARLY = ("vocabulary", "stop ids", "prompts", "end of answer", "lengths", "verifier", "memory", "disk")
EARLY_PROMPTS = 256
OWN_VERIFIERS = ("math", "exact")  # a user's function is not called before the run calls it

NEEDS_TEACHER = ("overlap", "pass@1")  # on the student's own support, and its own answers
SHARED = ("run file", "memory", "time")  # among processes
BLOCKING = ("vocabulary", "contexts", "memory")  # errors of these make the models fail where they run, if they load
EARLIER = "not checked: it needs what was refused above"


def examine(config: RunConfig, *, quick: bool = False, processes: int = 1) -> Iterator[Finding]:
    """Every finding as it is made.

    Args:
      quick: only what needs no weights.
      processes: how many are to share the run; what they cannot share is refused, and memory and time are those of
        one of them.
    """
    run, reported = RunAssembly(config, asks_teacher=True), set[str]()
    rated = RATED if config.reward else {}  # before what they take
    cheap = {**TEXTS, **HYBRID, **rated, **BUDGET, **(SERVED if serving.has_servers(config) else {})}
    costly = {**COSTLY, **(RATED_COSTLY if config.reward else {})}
    for name, check in {**cheap, **({} if quick else costly)}.items():
        if name in NEEDS_TEACHER and not config.has_teacher:
            continue
        # Not asked before its turn: the checks before have read the models and reported what is wrong with them.
        if name in HYBRID and not recurrent.has_recurrent_layers(run):
            continue
        if name in costly and reported & set(BLOCKING):
            yield Finding(Verdict.skipped, "not tried: the models cannot run as they are, see above", check=name)
            continue
        if name in NEEDS_TEACHER and config.teacher.servers:
            yield Finding(Verdict.skipped, "a teacher server does not report this", check=name)
            continue
        of_one = partial(check, num_processes=processes) if name in SHARED else check
        finding, remarks = _examined(run, of_one, reported)
        reported |= {finding.text, *remarks} | ({name} if finding.verdict == Verdict.error else set())
        yield replace(finding, check=name)
        yield from (Finding(Verdict.warning, remark, check=name) for remark in remarks)


def early_warnings(config: RunConfig) -> Iterator[str]:
    """What the cheap checks would warn of in a run that was built, and so was not refused; a fraction of a second."""
    data_config = config.data.model_copy(update={"limit": min(config.data.limit or EARLY_PROMPTS, EARLY_PROMPTS)})
    run = RunAssembly(config.model_copy(update={"data": data_config}))
    for name in EARLY:
        if name == "verifier" and config.data.verifier not in OWN_VERIFIERS:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # building the run has shown them
            try:
                finding = CHEAP[name](run)
            except (TutelageError, OSError):
                continue  # refusals come from building the run, which reads all prompts
        if finding.verdict in (Verdict.warning, Verdict.error):
            yield f"{name}: {finding.text}. {finding.remedy}"


def _examined(run: RunAssembly, check: Check, reported: set[str]) -> tuple[Finding, list[str]]:
    """What a check found, and the warnings that came up and were not reported before."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            finding = check(run)
        except (TutelageError, OSError) as problem:
            text = str(problem)
            finding = Finding(Verdict.skipped, EARLIER) if text in reported else Finding(Verdict.error, text)
        except (RuntimeError, IndexError) as problem:  # of a model that runs, memory that runs out among them
            finding = Finding(Verdict.error, f"stopped by {type(problem).__name__}: {in_short(problem)}")
    remarks = [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]
    return finding, [text for text in dict.fromkeys(remarks) if text not in reported]
