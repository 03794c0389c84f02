from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.verdict_tables import COLLECTED, HELD_OUT, WRITTEN_AFTER, Case
from tutelage.tasks import Verifier


@pytest.fixture(scope="module")
def math() -> Iterator[Verifier]:
    with Verifier("math") as verifier:
        yield verifier


@pytest.mark.sweeps
@pytest.mark.parametrize("table", [COLLECTED, HELD_OUT, WRITTEN_AFTER], ids=["collected", "held out", "written after"])
def test_every_verdict_is_the_one_that_was_decided(math: Verifier, table: list[Case]) -> None:
    verdicts = math.verify_many((response, answer) for _, response, answer, _ in table)
    wrong = [case for case, verdict in zip(table, verdicts, strict=True) if verdict is not case[3]]
    assert wrong == []


def test_the_tables_have_both_verdicts_and_no_line_twice() -> None:
    lines = [case[:3] for case in COLLECTED + HELD_OUT + WRITTEN_AFTER]
    assert len(set(lines)) == len(lines)
    assert {case[3] for case in HELD_OUT} == {True, False}
