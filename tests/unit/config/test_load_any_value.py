"""Every key of a run file with values that make no sense: a run that can be written down again, or one clear line."""

from __future__ import annotations

import random
import tomllib
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import fields, is_dataclass
from datetime import date
from types import UnionType
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from tutelage.advantages import ADVANTAGES
from tutelage.config import RunConfig, build_phases, rating_plan, resolve_config, to_toml
from tutelage.config.source import check_values
from tutelage.divergences import DIVERGENCES
from tutelage.errors import ConfigurationError
from tutelage.policies import POLICIES
from tutelage.rewards import COMBINATIONS, REWARDS
from tutelage.targets import TARGETS
from tutelage.tasks import TemplateClock
from tutelage.weighting import WEIGHTINGS

NEEDED = {"student": {"path": "small"}, "teacher": {"path": "large"}, "data": {"path": "prompts.jsonl"}}
VALUES: list[Any] = [
    *(
        "",
        " ",
        "\0",
        "a\nb",
        "\x1b[31m",
        "../x",
        "~",
        "~nobody-of-that-name/x",
        "[/b]",
        "x" * 100_000,
        "\u202e",
        "\udcff",
    ),
    *(0, -1, 10**6, 10**12, 10**18, 2**63 - 1, 2**63, 10**30, 2**100_000),
    *(0.5, 1e308, -1e308, 1e-320, float("nan"), float("inf"), -float("inf"), True, False),
    *([], [[]], [1], ["a"], [{}], {}, {"a": 1}, {"name": "x"}, {"path": 1}, {"": 1}, {"a\nb": "x"}, date(2024, 1, 1)),
    *({"schedule": "linear"}, {"schedule": []}, {"schedule": "piecewise", "points": [[0, 1], [2**62, 2]]}),
    *({"schedule": "piecewise", "points": [[]]}, {"schedule": "linear", "start": "0", "stop": 1, "steps": 10**12}),
]
NUM_TRIED = 1400  # of some 13,000, drawn from a seed
AXES = {"policy": POLICIES, "target": TARGETS, "divergence": DIVERGENCES, "weighting": WEIGHTINGS}


def keys_of(schema: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(schema, UnionType):  # a table that may be left out
        schema = get_args(schema)[0]
    known: dict[str, Any] = {}
    if isinstance(schema, type) and issubclass(schema, BaseModel):
        known = {name: field.annotation for name, field in schema.model_fields.items()}
    elif is_dataclass(schema):
        known = {field.name: field.type for field in fields(schema)}
    for name, annotation in known.items():
        yield prefix + name
        yield from keys_of(annotation, f"{prefix}{name}.")


def tables() -> Iterator[tuple[str, dict[str, Any]]]:
    """A table for every key and value, and for every field of every member of an axis."""
    for key in keys_of(RunConfig):
        for value in VALUES:
            table: dict[str, Any] = deepcopy(NEEDED)
            *parents, last = key.split(".")
            place = table
            for parent in parents:
                place = place.setdefault(parent, {})
            place[last] = deepcopy(value)
            yield key, table
    for key in ("path", "name", "split", "limit"):
        yield from ((f"evaluation.sets.{key}", NEEDED | {"evaluation": {"sets": [{key: value}]}}) for value in VALUES)
    for key in ("name", "steps", "policy", "learning_rate", "loss"):
        yield from ((f"phase.{key}", NEEDED | {"phase": [{key: value}]}) for value in VALUES)
    for axis, members in AXES.items():
        for name, member in members.items():
            for field in fields(member):
                yield from ((f"{axis}.{field.name}", NEEDED | {axis: {"name": name, field.name: v}}) for v in VALUES)
                if axis == "divergence":
                    yield from (
                        (f"loss.{field.name}", NEEDED | {"loss": [{"name": name, field.name: v}]}) for v in VALUES
                    )
    for name, reward in REWARDS.items():
        for field in fields(reward):
            yield from ((f"reward.{field.name}", NEEDED | {"reward": [{"name": name, field.name: v}]}) for v in VALUES)
    for name, combination in COMBINATIONS.items():
        for field in fields(combination):
            for value in VALUES:
                rated = {"reward": ["length"], "reward_combination": {"name": name, field.name: value}}
                yield f"reward_combination.{field.name}", NEEDED | rated
    for name, advantage in ADVANTAGES.items():
        for field in fields(advantage):
            for value in VALUES:
                loss = {"name": "sampled_nll", "advantage": {"name": name, field.name: value}}
                yield f"advantage.{field.name}", NEEDED | {"policy": {"name": "teacher"}, "loss": [loss]}


@pytest.mark.sweeps
def test_every_value_at_every_key_is_a_run_or_one_line() -> None:
    every = list(tables())
    random.Random(12).shuffle(every)
    good = 0
    for key, table in every[:NUM_TRIED]:
        try:
            config = resolve_config(table)
            build_phases(config)
            rating_plan(config, "cpu", TemplateClock())
        except ConfigurationError as problem:
            assert "\n" not in str(problem), key
            str(problem).encode()
        else:
            good += 1
            assert resolve_config(_read(to_toml(config))) == config, key
    assert good > NUM_TRIED // 25


def _read(text: str) -> dict[str, Any]:
    table = tomllib.loads(text)
    check_values(table, "the run file")
    return table


@pytest.mark.parametrize("override", ["a.b", "=1", "phase.x.steps=1", "phase=1", "student.path.x=1", "..=1", "seed.=1"])
def test_overrides_that_lead_nowhere(override: str) -> None:
    with pytest.raises(ConfigurationError):
        resolve_config(NEEDED, [override])
