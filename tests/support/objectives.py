"""Objectives of a few terms, as tests need them."""

from __future__ import annotations

from typing import Any

from tutelage.losses import Loss
from tutelage.models import ModelSet
from tutelage.policies import Student
from tutelage.targets import TargetRule, Teacher
from tutelage.training import Objective, Recipe
from tutelage.weighting import UNIFORM, Weighting


def objective_of(
    models: ModelSet,
    *losses: Loss,
    target: TargetRule | None = None,
    weighting: Weighting = UNIFORM,
    **settings: Any,
) -> Objective:
    """`settings`: fields of `Objective`; the target is the teacher by default."""
    return Objective(models, Recipe(Student(), target or Teacher(), losses, weighting), **settings)
