"""The results of the runs as numbers: each run on its own, then methods over seeds, against the first one in pairs.

Only the files of the runs are read. S is the axis of seeds.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from tutelage.evaluation import t_interval
from tutelage.report import Columns, Curve, pass_at_1_curve, read_run

__all__ = ["MEASURES", "Measure", "Summary", "area_under", "measure_run", "summarise_methods"]


@dataclass(frozen=True)
class Measure:
    """A number of a run.

    Fields:
      title: in tables.
      definition: one line for the notes.
      scale: what a table multiplies it with; 100 for shares.
      form: of the scaled number.
      is_cost: of the run, and not of what it reached.
    """

    title: str
    definition: str
    scale: float = 1.0
    form: str = ".1f"
    is_cost: bool = False


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
    "seconds": Measure("seconds", "wall clock of all training steps; evaluations and checkpoints aside", is_cost=True),
    "response_tokens": Measure("tokens", "response tokens sampled for training", form=",.0f", is_cost=True),
    "teacher_forwards": Measure(
        "teacher forwards",
        "of single answers: while sampling, every forward in which the teacher reads on; scored afterwards, one each",
        form=",.0f",
        is_cost=True,
    ),
    "tokens_per_teacher_forward": Measure(
        "tokens / forward", "response tokens over teacher forwards, whole run", form=".2f", is_cost=True
    ),
}
"""Every number of a run: name -> what it is."""


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


def measure_run(folder: Path, *, checkpoint_rule: str, early_steps: int, num_rollouts: int) -> dict[str, float]:
    """The measures of a finished run, as far as its files have them.

    Args:
      num_rollouts: per step; a teacher that took no part in the sampling reads each once.
    """
    run = read_run(folder)
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
        "seconds": np.nansum(run.metrics["seconds"]),
        "response_tokens": tokens,
        "teacher_forwards": forwards,
        "tokens_per_teacher_forward": tokens / forwards if forwards else None,
    }
    return {name: float(value) for name, value in found.items() if value is not None}


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
    summaries: dict[str, dict[str, Summary]] = {}
    for place, (name, runs) in enumerate(values.items()):
        summaries[name] = {}
        for measure in MEASURES:
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
