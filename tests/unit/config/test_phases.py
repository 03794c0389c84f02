"""What holds at which step of a run with `[[phase]]` tables, and which phases are refused."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest

from tutelage.config import RunConfig, build_phases, resolve_config, to_toml
from tutelage.divergences import ReverseKL, SampledNLL
from tutelage.errors import ConfigurationError
from tutelage.policies import Student, Teacher, TrustRegion
from tutelage.schedules import Linear
from tutelage.training import Recipe

RUN = """
student = "small"
teacher = "large"
data = "prompts.jsonl"
steps = 20
[policy]
name = "trust_region"
kl_radius = 0.01
[divergence]
top_k = 4
[optimizer]
learning_rate = 1e-4
"""
WARM_UP = """
[[phase]]
name = "sft"
steps = 5
policy = "teacher"
divergence = "sampled_nll"
learning_rate = 2e-4
"""
ANNEALED = """
[[phase]]
steps = 10
[phase.policy]
kl_radius = { schedule = "linear", start = 0.05, stop = 0.0, steps = 10 }
"""
OPEN = """
[[phase]]
name = "opd"
policy = "student"
"""


def config_of(text: str, *overrides: str) -> RunConfig:
    return resolve_config(tomllib.loads(RUN + text), overrides)


def phases_of(text: str, *overrides: str) -> list[tuple[str | None, int, Recipe]]:
    return [(phase.name, phase.first_step, phase.recipe) for phase in build_phases(config_of(text, *overrides))]


def own(**parts: Any) -> Recipe:
    """The run's own recipe, with other parts."""
    (phase,) = build_phases(config_of(""))
    return Recipe(**{**vars(phase.recipe), **parts})


def test_a_run_without_phases_is_one_without_a_name() -> None:
    assert phases_of("") == [(None, 0, own())]
    assert own().policy == TrustRegion(0.01) and own().losses == (ReverseKL(top_k=4),)


def test_a_phase_replaces_what_it_names_and_nothing_else() -> None:
    sft, annealed, opd = phases_of(WARM_UP + ANNEALED + OPEN)
    assert sft == ("sft", 0, own(policy=Teacher(), losses=(SampledNLL(),)))
    assert annealed == ("2", 5, own(policy=TrustRegion(Linear(0.05, 0.0, 10))))  # no name: the run's own member
    assert opd == ("opd", 15, own(policy=Student()))


def test_steps_behind_the_last_phase_are_the_runs_own() -> None:
    assert phases_of(WARM_UP)[1:] == [("2", 5, own())]
    assert len(phases_of(WARM_UP, "steps=5")) == 1


def test_a_phase_has_its_own_learning_rate_or_the_runs() -> None:
    phases = build_phases(config_of(WARM_UP + OPEN))
    assert [phase.optimizer.learning_rate for phase in phases] == [2e-4, 1e-4]
    assert {phase.optimizer.warmup_steps for phase in phases} == {15}


def test_phases_read_back_as_themselves() -> None:
    config = config_of(WARM_UP + ANNEALED + OPEN)
    again = resolve_config(tomllib.loads(to_toml(config)))
    assert again == config and build_phases(again) == build_phases(config)


@pytest.mark.parametrize(
    ("override", "place", "expected"),
    [
        ("phase.sft.steps=7", 1, ("2", 7, own(policy=TrustRegion(Linear(0.05, 0.0, 10))))),
        ("phase.1.steps=7", 2, ("opd", 17, own(policy=Student()))),
        ("phase.sft.policy=student", 0, None),
        ("phase.sft.divergence=reverse_kl", 0, ("sft", 0, own(policy=Teacher(), losses=(ReverseKL(),)))),
        ("phase.2.policy.kl_radius=0.3", 1, ("2", 5, own(policy=TrustRegion(0.3)))),
        ("phase.opd.policy.name=teacher", 2, ("opd", 15, own(policy=Teacher()))),
        ("divergence.top_k=2", 2, ("opd", 15, own(policy=Student(), losses=(ReverseKL(top_k=2),)))),
        ("phase=[]", 0, (None, 0, own())),
        ('phase=[{steps = 3, policy = "teacher"}]', 0, ("1", 0, own(policy=Teacher()))),
    ],
)
def test_overrides_find_a_phase_by_name_or_place(override: str, place: int, expected: Any) -> None:
    text = WARM_UP + ANNEALED + OPEN
    if expected is None:
        assert config_of(text, override).phase[place].policy == {"name": "student"}
    else:
        assert phases_of(text, override)[place] == expected


@pytest.mark.parametrize(
    ("text", "overrides", "expected"),
    [
        (WARM_UP + OPEN, ["steps=5"], "the phases have 5 steps in all, but the run has 5. The last one, which goes on"),
        (WARM_UP + ANNEALED, ["steps=14"], "the phases have 15 steps in all, but the run has 14. Raise steps, or "),
        (OPEN + WARM_UP, [], "phase 'opd' has no steps, and another one follows"),
        (WARM_UP + WARM_UP, [], "two phases are called 'sft'"),
        (WARM_UP, ["phase.sft.name=2"], "phase.1.name is 2; it should be a valid string, in quotes"),
        (WARM_UP, ["phase.sft.name='2'"], "a phase has the name '2', which --set"),
        (WARM_UP, ["phase.sft.steps=0"], "phase.1.steps is 0; it should be greater than or equal to 1"),
        (WARM_UP, ["phase.sft.step=1"], "unknown configuration key 'phase.sft.step'. Did you mean phase.sft.steps?"),
        (ANNEALED, ["phase.1.seed=1"], "unknown configuration key 'phase.1.seed'"),
        (WARM_UP, ["phase.opd.steps=1"], "there is no phase 'opd'; expected one of 1, sft."),
        (WARM_UP, ["phase.sft=1"], "phase is a value, not a table"),
        (WARM_UP, ["phase=1"], "phase is 1; it should be a valid list"),
        (WARM_UP, ["phase.sft.learning_rate=0"], "phase.1.learning_rate is 0; it should be greater than 0"),
        (WARM_UP, ["phase.sft.policy=foo"], "phase 'sft': policy.name is 'foo'; expected one of "),
        (WARM_UP, ["phase.sft.divergence.top_k=1"], "phase 'sft': divergence.top_k is set, but divergence.name is 's"),
        (ANNEALED, ["phase.1.policy.kl_radius=-1"], "phase '1': policy.kl_radius is -1; a KL radius cannot be neg"),
        (
            WARM_UP,
            ["phase.sft.policy=student"],
            "phase 'sft': the loss SampledNLL imitates the sampled tokens, but",
        ),
        (
            "",
            ["divergence={name = 'sampled_nll'}", "policy=student"],
            "the loss SampledNLL imitates the sampled",
        ),
    ],
)
def test_phases_that_cannot_be_are_refused(text: str, overrides: list[str], expected: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        build_phases(config_of(text, *overrides))
    assert str(caught.value).removeprefix(f"--set {overrides[0] if overrides else ''}: ").startswith(expected)
    assert "\n" not in str(caught.value)
