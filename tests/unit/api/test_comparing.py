"""Comparisons and sweeps described in Python; that they run is in tests/e2e/test_comparison.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tutelage
from tutelage.api import comparing
from tutelage.comparison import Outcome, Plan
from tutelage.comparison.measures import summarise_methods
from tutelage.errors import ConfigurationError

OPD = {"name": "opd", "student": "s", "teacher": "t", "data": "d.jsonl", "evaluation": {"sets": ["p.jsonl"]}}
TRB = {**OPD, "name": "trb", "policy": {"name": "trust_region", "kl_radius": 0.02}}


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Plan, dict[str, Any]]]:
    """What would be run."""
    found: list[tuple[Plan, dict[str, Any]]] = []

    def run_plan(plan: Plan, world: Any, console: Any, **settings: Any) -> Outcome:
        found.append((plan, settings))
        runs = {method.name: {seed: {"pass_at_1": seed / 10} for seed in plan.seeds} for method in plan.methods}
        return Outcome(plan, runs, summarise_methods(runs), [])

    monkeypatch.setattr(comparing, "run_plan", run_plan)
    return found


def test_methods_as_tables_with_overrides_for_all_and_for_one(plans: list[tuple[Plan, dict[str, Any]]]) -> None:
    overrides = {"steps": 7, "trb:policy.kl_radius": 0.1}
    outcome = tutelage.compare([OPD, TRB], overrides, seeds=2, first_seed=5, workers=1, progress=False)
    ((plan, settings),) = plans
    assert plan.folder == Path("comparisons/opd-trb") and list(plan.seeds) == [5, 6]
    assert [method.config.steps for method in plan.methods] == [7, 7]
    assert plan.methods[1].config.policy == {"name": "trust_region", "kl_radius": 0.1}
    assert settings == {"workers": 1, "resume": False, "accept": ()}
    frame = outcome.frame.set_index("method")
    assert frame.loc["trb", "mean"] == pytest.approx(0.55) and frame.loc["trb", "difference"] == 0
    assert json.loads(json.dumps(outcome.as_dict()))["runs"]["opd"] == {
        "5": {"pass_at_1": 0.5},
        "6": {"pass_at_1": 0.6},
    }


def test_a_sweep_over_values_of_python(plans: list[tuple[Plan, dict[str, Any]]]) -> None:
    grid = {"policy.kl_radius": [0.01, 0.02]}
    tutelage.sweep(TRB, grid, baseline=OPD, seeds=1, output="here", progress=False)
    tutelage.sweep(TRB, ["policy.kl_radius=0.01,0.02"], baseline=OPD, seeds=1, output="here", progress=False)
    (plan, settings), (as_text, _) = plans
    assert plan == as_text and plan.folder == Path("here") and plan.free_keys == ["policy.kl_radius"]
    assert [method.config.policy.get("kl_radius") for method in plan.methods] == [None, 0.01, 0.02]
    assert "draw" in settings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": 0}, "seeds is 0; expected a number of at least 1"),
        ({"worker": 2}, r"'worker'. Did you mean workers\?"),
        ({"checkpoint": "first"}, "checkpoint is 'first'; expected one of last, best"),
        ({"steps": 3}, "which was not asked for. Add --world embedded"),
    ],
)
def test_what_cannot_be_compared_is_refused(plans: list[Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        tutelage.compare([OPD, TRB], **options)
    assert plans == []
