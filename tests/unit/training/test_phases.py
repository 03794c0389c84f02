from __future__ import annotations

from tutelage.divergences import ReverseKL
from tutelage.policies import Student, Temperature, TrustRegion
from tutelage.schedules import Linear
from tutelage.targets import Teacher
from tutelage.training import OptimizerSettings, Phase, Recipe, phase_at

BLEND = Recipe(TrustRegion(Linear(0.04, 0.0, 2)), Teacher(), (ReverseKL(),))
WARM = Recipe(Temperature(Linear(0.8, 1.0, 2)), Teacher(), (ReverseKL(top_k=3),))
PHASES = [Phase(BLEND, OptimizerSettings()), Phase(WARM, OptimizerSettings(), first_step=3, name="warm")]


def test_a_step_belongs_to_the_last_phase_that_has_begun() -> None:
    assert [phase_at(PHASES, step).first_step for step in range(6)] == [0, 0, 0, 3, 3, 3]


def test_schedules_count_from_the_first_step_of_their_phase() -> None:
    policies = [phase_at(PHASES, step).recipe_at(step).policy for step in range(6)]
    blends = [TrustRegion(0.04), TrustRegion(0.02), Student()]
    assert policies == [*blends, Temperature(0.8), Temperature(0.9), Student()]
    assert phase_at(PHASES, 4).recipe_at(4).losses == (ReverseKL(top_k=3),)
