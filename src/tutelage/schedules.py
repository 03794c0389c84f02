"""How does a number change with the training step?

A schedule is a function from the step, counted from 0, to a number. Parts accept a plain number or a schedule wherever
a hyperparameter may move during training, and are resolved to plain numbers before they compute anything. Outside its
points every schedule is flat. Learning-rate schedules belong to the optimiser, not here.
"""

from __future__ import annotations

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from difflib import get_close_matches
from itertools import pairwise
from typing import Any, TypeVar

from tutelage.errors import ConfigurationError

__all__ = [
    "SCHEDULES",
    "Constant",
    "Cosine",
    "Linear",
    "Piecewise",
    "Schedule",
    "as_schedule",
    "at_step",
    "plain_number",
    "resolve",
    "schedule_from",
]


Part = TypeVar("Part")


@dataclass(frozen=True)
class Schedule(ABC):
    """A number for every step. To add one: a frozen dataclass with these two methods and a line in `SCHEDULES`."""

    @abstractmethod
    def __call__(self, step: int) -> float:
        """Value at `step` = 0, 1, 2, ..."""

    @abstractmethod
    def bounds(self) -> tuple[float, float]:
        """Smallest and largest value over all steps."""


@dataclass(frozen=True)
class Constant(Schedule):
    """The same value at every step."""

    value: float

    def __post_init__(self) -> None:
        _number(self.value, "value")

    def __call__(self, step: int) -> float:
        return float(self.value)

    def bounds(self) -> tuple[float, float]:
        return float(self.value), float(self.value)


@dataclass(frozen=True)
class Linear(Schedule):
    """Straight line from `start` at step 0 to `stop` at step `steps`, then exactly `stop`.

    start + (stop - start) k / steps. With stop 0 this is the budget of TRB, eps_0 (1 - k/K) for k = 0, ..., K-1
    and exactly 0 from step K on (arXiv 2605.31159, Section 4).
    """

    start: float
    stop: float
    steps: int

    def __post_init__(self) -> None:
        _check_span(self.start, self.stop, self.steps)

    def __call__(self, step: int) -> float:
        if step >= self.steps:
            return float(self.stop)
        return self.start + (self.stop - self.start) * max(step, 0) / self.steps

    def bounds(self) -> tuple[float, float]:
        return float(min(self.start, self.stop)), float(max(self.start, self.stop))


@dataclass(frozen=True)
class Cosine(Schedule):
    """Half a cosine from `start` at step 0 to `stop` at step `steps`, then exactly `stop`.

    stop + (start - stop) (1 + cos(π k / steps)) / 2.
    """

    start: float
    stop: float
    steps: int

    def __post_init__(self) -> None:
        _check_span(self.start, self.stop, self.steps)

    def __call__(self, step: int) -> float:
        if step <= 0:
            return float(self.start)
        if step >= self.steps:
            return float(self.stop)
        return self.stop + (self.start - self.stop) * (1 + math.cos(math.pi * step / self.steps)) / 2

    def bounds(self) -> tuple[float, float]:
        return float(min(self.start, self.stop)), float(max(self.start, self.stop))


@dataclass(frozen=True)
class Piecewise(Schedule):
    """Straight lines between given `(step, value)` points, flat before the first and after the last.

    Two points one step apart make a jump.
    """

    points: Sequence[tuple[int, float]]

    def __post_init__(self) -> None:
        if not isinstance(self.points, Sequence) or not self.points:
            raise ConfigurationError(
                f"points is {self.points!r}; expected at least one (step, value) pair. "
                "Write points = [[0, 0.05], [25, 0.0]]."
            )
        for index, point in enumerate(self.points):
            if not isinstance(point, Sequence) or len(point) != 2:
                raise ConfigurationError(
                    f"points[{index}] is {point!r}; expected a (step, value) pair. "
                    "Write points = [[0, 0.05], [25, 0.0]]."
                )
            _count(point[0], f"points[{index}][0]", at_least=0)
            _number(point[1], f"points[{index}][1]")
        for (step, _), (next_step, _) in pairwise(self.points):
            if step >= next_step:
                raise ConfigurationError(
                    f"points has step {next_step} after step {step}; steps must increase. Sort the points by step."
                )
        # A tuple, so that the frozen schedule cannot change through the list it was made from, and can be hashed.
        object.__setattr__(self, "points", tuple((step, float(value)) for step, value in self.points))

    def __call__(self, step: int) -> float:
        first_step, first_value = self.points[0]
        if step <= first_step:
            return first_value
        for (step_a, value_a), (step_b, value_b) in pairwise(self.points):
            if step < step_b:
                return value_a + (value_b - value_a) * (step - step_a) / (step_b - step_a)
        return self.points[-1][1]

    def bounds(self) -> tuple[float, float]:
        values = [value for _, value in self.points]
        return min(values), max(values)


SCHEDULES: dict[str, type[Schedule]] = {
    "constant": Constant,
    "linear": Linear,
    "cosine": Cosine,
    "piecewise": Piecewise,
}


def as_schedule(value: float | Schedule, key: str = "value") -> Schedule:
    """A schedule from a plain number; schedules pass through. `key` names the value in the refusal of anything else."""
    return value if isinstance(value, Schedule) else Constant(_number(value, key))


def resolve(value: float | Schedule, step: int) -> float:
    """The plain number that `value` is at `step`."""
    return as_schedule(value)(step)


def plain_number(value: float | Schedule, key: str) -> float:
    """The value of a part's field at call time; a schedule that moves has none until `at` picked a step."""
    if isinstance(value, Constant):
        return float(value.value)
    if isinstance(value, Schedule):
        part = key.split(".")[0]
        raise ConfigurationError(
            f"{key} is {value!r}, which changes with the step; a {part} is called with plain numbers. "
            f"Call {part}.at(step) first, and use the {part} it returns."
        )
    return float(value)


def at_step(part: Part, step: int) -> Part:
    """A part, and the parts inside it, with the numbers of `step` in place of schedules; itself where nothing moves."""
    values = {item.name: getattr(part, item.name) for item in fields(part) if item.init}  # type: ignore[arg-type]
    moving = {name: new for name, value in values.items() if (new := _at(value, step)) is not value}
    return replace(part, **moving) if moving else part  # type: ignore[type-var]


def _at(value: Any, step: int) -> Any:
    """A field's value at a step; itself where nothing in it moves."""
    if isinstance(value, Schedule):
        return value(step)
    if isinstance(value, tuple):
        resolved = tuple(_at(each, step) for each in value)
        return value if all(map(operator.is_, resolved, value)) else resolved
    return value.at(step) if is_dataclass(value) and hasattr(value, "at") else value


def schedule_from(value: object, key: str) -> Schedule:
    """A schedule as a run file writes it: `0.05`, or `{schedule = "linear", start = 0.05, stop = 0.0, steps = 25}`.

    Args:
      value: what the TOML parser returned.
      key: where it stood, such as "policy.kl_radius"; every refusal names it.
    """
    if isinstance(value, Schedule):
        return value
    if not isinstance(value, Mapping):
        return Constant(_number(value, key))
    arguments = dict(value)
    name = arguments.pop("schedule", None)
    if name is None:
        raise ConfigurationError(
            f"{key} is a table without a schedule; expected a number or a table that names one of {_names(SCHEDULES)}. "
            f'Write {key} = {{schedule = "linear", start = 0.05, stop = 0.0, steps = 25}}.'
        )
    if not isinstance(name, str) or name not in SCHEDULES:
        raise ConfigurationError(
            f"{key}.schedule is {name!r}; expected one of {_names(SCHEDULES)}. {_nearest(name, SCHEDULES)}"
        )
    return _built(SCHEDULES[name], arguments, f"{key}, a {name} schedule,", key)


def _built(schedule: type[Schedule], arguments: dict[str, Any], subject: str, key: str) -> Schedule:
    known = [field.name for field in fields(schedule)]
    unknown = [name for name in arguments if name not in known]
    missing = [name for name in known if name not in arguments]
    if unknown:
        raise ConfigurationError(
            f"{subject} got {unknown[0]!r}; its fields are {_names(known)}. {_nearest(unknown[0], known)}"
        )
    if missing:
        raise ConfigurationError(
            f"{subject} got no {missing[0]!r}; it needs {_names(known)}. Add {missing[0]} to the table."
        )
    try:
        return schedule(**arguments)
    except ConfigurationError as error:
        raise ConfigurationError(f"{key}.{error}") from error


def _names(names: Iterable[str]) -> str:
    return ", ".join(names)


def _nearest(name: object, known: Iterable[str]) -> str:
    matches = get_close_matches(str(name), list(known), n=1)
    return f"Did you mean {matches[0]!r}?" if matches else "Use one of these."


def _number(value: object, field: str) -> float:
    """`value` itself if it is a finite number; a refusal that names `field` otherwise."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigurationError(
            f"{field} is {value!r}; expected a finite number or a schedule. Write a plain number such as 0.05."
        )
    return value


def _count(value: object, field: str, at_least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise ConfigurationError(
            f"{field} is {value!r}; expected a whole number of steps, at least {at_least}. "
            "Use a plain number where the value should not change."
        )
    return value


def _check_span(start: object, stop: object, steps: object) -> None:
    _number(start, "start")
    _number(stop, "stop")
    _count(steps, "steps", at_least=1)
