"""Lines of JSON that every reader takes."""

from __future__ import annotations

import json
import math

from tutelage.files import json_line


def test_numbers_that_are_not_finite_are_null() -> None:
    record = {"step": 3, "loss": 0.5, "of_tokens": [math.inf, {"a": (-math.inf, math.nan)}], "name": "NaN \ud83d"}
    line = json_line(record)
    assert line.endswith("\n") and line.count("\n") == 1
    assert json.loads(line) == {"step": 3, "loss": 0.5, "of_tokens": [None, {"a": [None, None]}], "name": "NaN \ud83d"}


def test_other_records_are_as_before() -> None:
    record = {"step": 3, "loss": 1e-320, "name": "é", "tokens": [1, None, True]}
    assert json_line(record) == json.dumps(record) + "\n"
