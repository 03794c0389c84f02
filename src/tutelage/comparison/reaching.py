"""When was a run as good as another one became?  The place at which a curve first reaches a value, and its cost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tutelage.report import Curve, RunRecords, evaluation_curve, pass_at_1_curve

__all__ = ["costs_of_reaching", "first_reaching"]

SHARE = 0.9


def first_reaching(places: Sequence[float], values: Sequence[float], target: float) -> float | None:
    """The first place at which a curve, straight between its points, is at least `target`; None = it never is.

    Args:
      places: increasing; steps, or tokens or seconds spent until each of them.
      values: at each place; higher is better.
    """
    for i, value in enumerate(values):
        if value >= target:
            if i == 0:
                return places[0]
            before, start = values[i - 1], places[i - 1]
            return start + (places[i] - start) * (target - before) / (value - before)
    return None


def costs_of_reaching(run: RunRecords, reference: RunRecords) -> dict[str, float]:
    """Steps, tokens and seconds until a run was 90% of the way from its untrained student to the reference's best.

    What is looked at is the KL to the teacher on own answers to the evaluation sets, where both runs have it, and
    pass@1 otherwise. Nothing where the run never gets there, or the reference never gets better.

    Args:
      run, reference: of the same seed.
    """
    curves = [_improvement(each) for each in (run, reference)]
    if any(len(curve) == 0 for curve in curves):
        curves = [pass_at_1_curve(each.evaluations) for each in (run, reference)]
    own, of_first = curves
    if len(own) < 2 or len(of_first) < 2 or of_first.values.max() <= of_first.values[0]:
        return {}
    target = own.values[0] + SHARE * (of_first.values.max() - of_first.values[0])
    columns = run.metrics
    spent = {
        "steps_to_90": own.steps,
        **{
            name: np.array([np.nansum(columns[key][columns.steps < step]) for step in own.steps])
            for name, key in (("tokens_to_90", "response_tokens_total"), ("seconds_to_90", "seconds"))
        },
    }
    found = {name: first_reaching(places.tolist(), own.values.tolist(), target) for name, places in spent.items()}
    return {name: place for name, place in found.items() if place is not None}


def _improvement(run: RunRecords) -> Curve:
    """The KL to the teacher, with the sign that makes more better."""
    kl = evaluation_curve(run.evaluations, "reverse_kl")
    return Curve(kl.steps, -kl.values)
