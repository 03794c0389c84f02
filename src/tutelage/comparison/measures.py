"""The results of the runs as numbers: each run on its own, then methods over seeds, against the first one in pairs.

Only the files of the runs are read. S is the axis of seeds.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tutelage.evaluation import t_interval
from tutelage.report import (
    Columns,
    Curve,
    RunRecords,
    curve,
    evaluation_curve,
    greedy_names,
    mean_and_spread,
    pass_at_1_curve,
)

__all__ = ["MEASURES", "Measure", "Summary", "area_under", "measure_named", "measure_run", "summarise_methods"]

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Measure:
    """A number of a run.

    Fields:
      title: in tables.
      definition: one line for the notes.
      scale: what a table multiplies it with; 100 for shares.
      form: of the scaled number.
      about: what was reached, how the student's own answers and given texts look, or what the run cost.
    """

    title: str
    definition: str
    scale: float = 1.0
    form: str = ".1f"
    about: Literal["reached", "texts", "cost"] = "reached"


MEASURES = {
    "pass_at_1": Measure(
        "pass@1 %", "of the reported checkpoint, sampled as [evaluation] says, mean over the sets", 100
    ),
    "pass_at_1_greedy": Measure("greedy %", "share of right greedy answers of the reported checkpoint", 100),
    "area": Measure("area %", "area under sampled pass@1 against the step, over the steps: its mean over the run", 100),
    "early_reward": Measure(
        "early rollouts %",
        "right training rollouts in the first steps; those of the policy, so a teacher's help counts",
        100,
    ),
    "reverse_kl": Measure(
        "KL",
        "to the teacher, nats per token of the reported checkpoint's own answers to the sets",
        form=".3f",
        about="texts",
    ),
    "teacher_logprob": Measure(
        "teacher log q",
        "nats per token of the same answers: how well the teacher finds them",
        form=".3f",
        about="texts",
    ),
    "support_overlap": Measure(
        "overlap %", "share of the student's top K that is in the teacher's, on the same answers", 100, about="texts"
    ),
    "student_entropy": Measure("entropy", "of the student, nats, on the same answers", form=".2f", about="texts"),
    "repeated_4grams": Measure("repeated %", "of the same answers, 1 - distinct 4-grams / 4-grams", 100, about="texts"),
    "stopped": Measure("stopped %", "share of the same answers that ended by themselves", 100, about="texts"),
    "answers_logprob": Measure(
        "log p answers",
        "nats per token of given answers, such as the teacher's, mean over their sets",
        form=".3f",
        about="texts",
    ),
    "text_logprob": Measure(
        "log p text", "nats per token of ordinary text, mean over its sets", form=".3f", about="texts"
    ),
    "seconds": Measure("seconds", "wall clock of all training steps; evaluations and checkpoints aside", about="cost"),
    "processor_seconds": Measure(
        "processor s",
        "processor time of all training steps, which other work on the machine changes less",
        about="cost",
    ),
    "response_tokens": Measure("tokens", "response tokens sampled for training", form=",.0f", about="cost"),
    "teacher_forwards": Measure(
        "teacher forwards",
        "of single answers: while sampling, every forward in which the teacher reads on; scored afterwards, one each",
        form=",.0f",
        about="cost",
    ),
    "tokens_per_teacher_forward": Measure(
        "tokens / forward", "response tokens over teacher forwards, whole run", form=".2f", about="cost"
    ),
    "steps_to_90": Measure(
        "steps to 90%",
        "until 90% of the way from the untrained student to the first method's best, of KL where a teacher read the "
        "answers and of pass@1 otherwise; straight lines between evaluations. A run that never got there has none",
        about="cost",
    ),
    "tokens_to_90": Measure("tokens to 90%", "response tokens spent until there", form=",.0f", about="cost"),
    "seconds_to_90": Measure("seconds to 90%", "wall clock spent until there", about="cost"),
}
"""Every number of a run: name -> what it is."""
OF_SET = {
    "pass_at_1": Measure("pass@1 %", "sampled, on this set alone", 100),
    "reverse_kl": Measure("KL", "to the teacher, on own answers to this set", form=".3f", about="texts"),
}
"""Numbers of each set by itself, where there are several; they are called NUMBER/SET."""


def measure_named(name: str) -> Measure:
    """What a number of a run is."""
    if name in MEASURES:
        return MEASURES[name]
    key, _, of_set = name.partition("/")
    measure = OF_SET[key]
    return replace(measure, title=f"{measure.title} {of_set}", definition=f"{measure.definition}: {of_set}")


@dataclass(frozen=True)
class Summary:
    """One measure of one method over seeds.

    Fields:
      mean, spread: over the S seeds that have it; spread is the standard deviation (n - 1), None for one seed.
      num_seeds: S.
      difference: mean over seeds of the method less the first method with the same seed; None without such a pair.
      interval: 95% Student-t interval of that difference; None for fewer than two pairs.
      num_pairs: seeds that both have.
    """

    mean: float
    spread: float | None
    num_seeds: int
    difference: float | None = None
    interval: tuple[float, float] | None = None
    num_pairs: int = 0


def measure_run(run: RunRecords, *, checkpoint_rule: str, early_steps: int, num_rollouts: int) -> dict[str, float]:
    """The measures of a finished run, as far as its records have them.

    Args:
      num_rollouts: per step; a teacher that took no part in the sampling reads each once.
    """
    sampled, greedy = (_values(pass_at_1_curve(run.evaluations, is_greedy=twin)) for twin in (False, True))
    step = max(sampled, default=None)
    if checkpoint_rule == "best" and sampled:
        step = max(sampled, key=lambda at: (sampled[at], -at))  # of equals the first
    tokens = float(np.nansum(run.metrics["response_tokens_total"]))
    forwards = _teacher_forwards(run.metrics, num_rollouts)
    rewards = run.metrics["reward"][:early_steps]
    rewards = rewards[np.isfinite(rewards)]
    found = {
        "pass_at_1": None if step is None else sampled[step],
        "pass_at_1_greedy": None if step is None else greedy.get(step),
        "area": area_under(sampled),
        "early_reward": rewards.mean() if len(rewards) else None,
        **_of_answers(run, step),
        "seconds": np.nansum(run.metrics["seconds"]),
        "processor_seconds": _total(run.metrics["processor_seconds"]),
        "response_tokens": tokens,
        "teacher_forwards": forwards,
        "tokens_per_teacher_forward": tokens / forwards if forwards else None,
    }
    return {name: float(value) for name, value in found.items() if value is not None}


def _of_answers(run: RunRecords, step: int | None) -> dict[str, float | None]:
    """What is known of a checkpoint's own answers and of given texts, over all sets and of each."""
    if step is None:
        return {}
    found: dict[str, float | None] = {}
    for key in ("reverse_kl", "teacher_logprob", "support_overlap", "student_entropy", "repeated_4grams"):
        found[key] = _values(evaluation_curve(run.evaluations, key)).get(step)
    cut = _values(evaluation_curve(run.evaluations, "truncation_rate")).get(step)
    found["stopped"] = None if cut is None else 1 - cut
    for name, are_answers in (("answers_logprob", True), ("text_logprob", False)):
        lines = [curve(own, "logprob") for own in run.texts.values() if bool(own["are_answers"].any()) == are_answers]
        found[name] = _values(mean_and_spread(lines)[0]).get(step) if lines else None
    sets = [name for name in run.evaluations if name not in greedy_names(run.evaluations)]
    if len(sets) > 1:
        found |= {
            f"{key}/{name}": _values(curve(run.evaluations[name], key)).get(step) for key in OF_SET for name in sets
        }
    return found


def _total(values: Numbers) -> float | None:
    """The sum; None where nothing was recorded."""
    return float(np.nansum(values)) if np.isfinite(values).any() else None


def area_under(value_at: Mapping[int, float]) -> float | None:
    """Area under a curve by trapezoids, over its width: the mean height. None for fewer than two points."""
    steps = sorted(value_at)
    if len(steps) < 2:
        return None
    area = sum((after - before) * (value_at[before] + value_at[after]) / 2 for before, after in pairwise(steps))
    return area / (steps[-1] - steps[0])


def summarise_methods(values: Mapping[str, Mapping[int, Mapping[str, float]]]) -> dict[str, dict[str, Summary]]:
    """Method -> measure -> summary, from method -> seed -> measure -> number; the first method is the reference."""
    reference = next(iter(values.values()), {})
    found = {measure for runs in values.values() for numbers in runs.values() for measure in numbers}
    known = [*(measure for measure in MEASURES if measure in found), *sorted(found - set(MEASURES))]
    summaries: dict[str, dict[str, Summary]] = {}
    for place, (name, runs) in enumerate(values.items()):
        summaries[name] = {}
        for measure in known:
            found_S = [numbers[measure] for numbers in runs.values() if measure in numbers]
            if not found_S:
                continue
            differences_S = [
                numbers[measure] - reference[seed][measure]
                for seed, numbers in runs.items()
                if place and measure in numbers and measure in reference.get(seed, {})
            ]
            summaries[name][measure] = Summary(
                mean=statistics.fmean(found_S),
                spread=statistics.stdev(found_S) if len(found_S) > 1 else None,
                num_seeds=len(found_S),
                difference=statistics.fmean(differences_S) if differences_S else None,
                interval=t_interval(differences_S),
                num_pairs=len(differences_S),
            )
    return summaries


def _values(line: Curve) -> dict[int, float]:
    return {int(step): float(value) for step, value in zip(line.steps, line.values, strict=True)}


def _teacher_forwards(metrics: Columns, num_rollouts: int) -> float:
    per_forward = metrics["tokens_per_teacher_forward"]
    while_sampling = per_forward > 0  # which NaN is not
    read_on = np.nansum(metrics["response_tokens_total"][while_sampling] / per_forward[while_sampling])
    return float(read_on + num_rollouts * np.count_nonzero(~while_sampling))
