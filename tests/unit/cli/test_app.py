"""What the commands take is what the functions of Python take."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any

import pytest

from tutelage.api import comparing, evaluating
from tutelage.cli.app import evaluate
from tutelage.cli.comparing import compare, sweep


@pytest.mark.parametrize(
    ("command", "defaults"),
    [
        (evaluate, evaluating.DEFAULTS),
        (compare, comparing.DEFAULTS),
        (sweep, comparing.DEFAULTS),
    ],
)
def test_options_left_out_mean_the_same_from_a_terminal_and_from_python(
    command: Callable[..., None], defaults: Mapping[str, Any]
) -> None:
    given = {name: parameter.default for name, parameter in inspect.signature(command).parameters.items()}
    assert defaults.keys() - given.keys() <= {"progress"}
    for name in defaults.keys() & given.keys():
        value = given[name].value if isinstance(given[name], Enum) else given[name]
        assert value == defaults[name] or (not value and defaults[name] == ()), name
