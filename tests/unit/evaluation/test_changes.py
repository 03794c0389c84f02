"""What was gained, lost and retained, by hand."""

from __future__ import annotations

import math

import pytest

from tutelage.errors import DataError
from tutelage.evaluation import changes_since, retained_mass


def samples(**right: list[int]) -> list[dict[str, object]]:
    return [{"problem_id": name, "correct": bool(one)} for name, verdicts in right.items() for one in verdicts]


def test_a_problem_is_solved_by_half_of_its_answers() -> None:
    first = samples(a=[1, 1], b=[0, 0], c=[1, 0], d=[0, 1, 0], gone=[1])
    now = samples(a=[0, 0], b=[1, 0], c=[0, 1], d=[0, 1, 1], new=[1])
    assert changes_since(first, now) == (0.5, 0.25)
    assert changes_since(first, first) == (0, 0)
    assert changes_since([], now) is None


def test_what_some_answers_win_does_not_make_up_for_what_others_lose() -> None:
    first = [math.log(p) for p in (0.5, 0.1, 0.01, 0.2)]
    now = [math.log(p) for p in (0.9, 0.05, 0.001, 0.2)]
    assert retained_mass(first, now) == pytest.approx(1 - (0.5 + 0.9) / 4)
    assert retained_mass(first, first) == 1 and retained_mass([-3.0], [-math.inf]) == 0
    with pytest.raises(DataError, match="at least one"):
        retained_mass([], [])


def test_the_estimate_has_the_mean_of_the_definition() -> None:
    """Over all right answers y, each drawn as often as the first model draws it."""
    before, after = [0.4, 0.2, 0.1], [0.6, 0.1, 0.09]
    exact = 1 - sum(max(0.0, p0 - p) for p0, p in zip(before, after, strict=True)) / sum(before)
    drawn = [place for place, p0 in enumerate(before) for _ in range(round(10 * p0))]
    first, now = ([math.log(p[place]) for place in drawn] for p in (before, after))
    assert retained_mass(first, now) == pytest.approx(exact)
