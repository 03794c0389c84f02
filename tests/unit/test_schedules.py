"""Schedules at their ends, between them and outside, and what is refused when a run file describes them."""

from __future__ import annotations

import math
import tomllib

import pytest

from tutelage.errors import ConfigurationError
from tutelage.schedules import (
    SCHEDULES,
    Constant,
    Cosine,
    Linear,
    Piecewise,
    Schedule,
    as_schedule,
    resolve,
    schedule_from,
)

EXAMPLES = [
    Constant(0.05),
    Linear(0.05, 0.0, 25),
    Linear(0.8, 1.0, 15),
    Cosine(0.05, 0.0, 25),
    Cosine(0.2, 0.9, 7),
    Piecewise([(5, 1.0), (10, 3.0), (11, 0.5), (20, 0.7)]),
]


def test_every_member_has_an_example() -> None:
    assert {type(schedule) for schedule in EXAMPLES} == set(SCHEDULES.values())


@pytest.mark.parametrize("schedule", EXAMPLES, ids=repr)
def test_values_are_numbers_within_the_bounds(schedule: Schedule) -> None:
    values = [schedule(step) for step in range(40)]
    low, high = schedule.bounds()
    assert all(isinstance(value, float) for value in (low, high, *values))
    assert low == min(values)
    assert high == max(values)
    assert schedule(10_000) == schedule(1_000)


def test_linear_is_the_budget_of_trb() -> None:
    schedule = Linear(0.05, 0.0, 25)
    assert schedule(0) == 0.05
    assert [schedule(step) for step in range(25)] == pytest.approx([0.05 * (1 - step / 25) for step in range(25)])
    assert all(schedule(step) > 0 for step in range(25))
    assert [schedule(step) for step in (25, 26, 400)] == [0.0, 0.0, 0.0]


def test_cosine_is_half_a_wave() -> None:
    schedule = Cosine(1.0, 0.0, 8)
    assert [schedule(step) for step in (0, 2, 4, 6, 8)] == pytest.approx(
        [1.0, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2, 0.0]
    )
    assert (schedule(0), schedule(8), schedule(9)) == (1.0, 0.0, 0.0)


def test_piecewise_is_linear_between_its_points_and_flat_outside() -> None:
    schedule = Piecewise([(5, 1.0), (10, 3.0), (11, 0.5), (20, 0.7)])
    steps = (0, 5, 6, 10, 11, 20, 21)
    assert [schedule(step) for step in steps] == pytest.approx([1.0, 1.0, 1.4, 3.0, 0.5, 0.7, 0.7])
    assert Piecewise([(3, 2)])(0) == Piecewise([(3, 2)])(9) == 2.0


def test_piecewise_does_not_change_with_the_list_it_was_made_from() -> None:
    points = [(0, 1.0), (4, 0.0)]
    schedule = Piecewise(points)
    points[1] = (4, 9.0)
    assert schedule(4) == 0.0
    assert schedule == Piecewise(((0, 1.0), (4, 0.0)))
    assert hash(schedule) == hash(Piecewise(((0, 1.0), (4, 0.0))))


def test_numbers_are_constant_schedules() -> None:
    assert as_schedule(2) == Constant(2)
    assert as_schedule(Linear(1, 0, 2)) == Linear(1, 0, 2)
    assert (resolve(0.5, 3), resolve(Linear(1, 0, 2), 1)) == (0.5, 0.5)


@pytest.mark.parametrize(
    ("toml", "expected"),
    [
        ("0.05", Constant(0.05)),
        ("0", Constant(0)),
        ('{schedule = "constant", value = 0.01}', Constant(0.01)),
        ('{schedule = "linear", start = 0.05, stop = 0.0, steps = 25}', Linear(0.05, 0.0, 25)),
        ('{schedule = "cosine", start = 0.05, stop = 0, steps = 25}', Cosine(0.05, 0, 25)),
        ('{schedule = "piecewise", points = [[0, 0.05], [25, 0.0]]}', Piecewise([(0, 0.05), (25, 0.0)])),
    ],
)
def test_reads_what_a_run_file_says(toml: str, expected: Schedule) -> None:
    value = tomllib.loads(f"kl_radius = {toml}")["kl_radius"]
    assert schedule_from(value, "policy.kl_radius") == expected
    assert schedule_from(expected, "policy.kl_radius") == expected


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ('"0.05"', r"policy\.kl_radius is '0\.05'; expected a finite number or a schedule\."),
        ("true", r"policy\.kl_radius is True; expected"),
        ("nan", r"policy\.kl_radius is nan; expected a finite number"),
        ("[1, 2]", r"policy\.kl_radius is \[1, 2\]; expected"),
        ("{start = 1}", r"policy\.kl_radius is a table without a schedule; .*linear.* Write policy\.kl_radius = "),
        ('{schedule = "linaer"}', r"policy\.kl_radius\.schedule is 'linaer'; .* Did you mean 'linear'\?"),
        ('{schedule = "xyz"}', r"policy\.kl_radius\.schedule is 'xyz'; expected one of constant, linear, .*Use one of"),
        ('{schedule = ["linear"]}', r"policy\.kl_radius\.schedule is \['linear'\]; expected one of"),
        (
            '{schedule = "linear", start = 1, stop = 0, stesp = 5}',
            r"policy\.kl_radius, a linear schedule, got 'stesp'; .*start, stop, steps\. Did you mean 'steps'\?",
        ),
        (
            '{schedule = "linear", start = 1, stop = 0}',
            r"policy\.kl_radius, a linear schedule, got no 'steps'; .* Add steps to the table\.",
        ),
        (
            '{schedule = "linear", start = 1, stop = 0, steps = 0}',
            r"policy\.kl_radius\.steps is 0; expected a whole number of steps, at least 1\.",
        ),
        (
            '{schedule = "linear", start = 1, stop = 0, steps = 2.5}',
            r"policy\.kl_radius\.steps is 2\.5; expected a whole",
        ),
        (
            '{schedule = "cosine", start = "a", stop = 0, steps = 2}',
            r"policy\.kl_radius\.start is 'a'; expected a finite",
        ),
        (
            '{schedule = "cosine", start = 0, stop = inf, steps = 2}',
            r"policy\.kl_radius\.stop is inf; expected a finite",
        ),
        ('{schedule = "constant", value = nan}', r"policy\.kl_radius\.value is nan; expected a finite"),
        ('{schedule = "piecewise", points = []}', r"policy\.kl_radius\.points is \[\]; expected at least one"),
        ('{schedule = "piecewise", points = 3}', r"policy\.kl_radius\.points is 3; expected at least one"),
        (
            '{schedule = "piecewise", points = [[0]]}',
            r"policy\.kl_radius\.points\[0\] is \[0\]; expected a \(step, value\)",
        ),
        (
            '{schedule = "piecewise", points = [[-1, 0]]}',
            r"policy\.kl_radius\.points\[0\]\[0\] is -1; expected a whole",
        ),
        (
            '{schedule = "piecewise", points = [[0, "a"]]}',
            r"policy\.kl_radius\.points\[0\]\[1\] is 'a'; expected a finite",
        ),
        ('{schedule = "piecewise", points = [[5, 1], [5, 2]]}', r"policy\.kl_radius\.points has step 5 after step 5;"),
    ],
)
def test_refuses_with_the_key_and_the_reason(toml: str, message: str) -> None:
    value = tomllib.loads(f"kl_radius = {toml}")["kl_radius"]
    with pytest.raises(ConfigurationError, match=message):
        schedule_from(value, "policy.kl_radius")
