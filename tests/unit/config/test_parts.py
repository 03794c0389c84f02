"""From a table to the part that it names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from tutelage.advantages import Focal, GroupReward, Sum
from tutelage.config import part_from
from tutelage.divergences import DIVERGENCES, ReverseKL
from tutelage.errors import ConfigurationError
from tutelage.losses import LOSSES
from tutelage.losses.tokens import CISPO
from tutelage.policies import POLICIES, Student, Temperature, TrustRegion
from tutelage.schedules import Constant, Linear
from tutelage.targets import TARGETS, Teacher

LINEAR = {"schedule": "linear", "start": 0.05, "stop": 0.0, "steps": 4}


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({"name": "student"}, Student()),
        ({"name": "trust_region", "kl_radius": 0.01}, TrustRegion(0.01)),
        ({"name": "trust_region", "kl_radius": 0}, TrustRegion(0)),
        ({"name": "trust_region", "kl_radius": LINEAR}, TrustRegion(Linear(0.05, 0.0, 4))),
        ({"name": "temperature", "temperature": {"schedule": "constant", "value": 1}}, Temperature(Constant(1))),
    ],
)
def test_policies(table: dict[str, Any], expected: object) -> None:
    assert part_from(table, POLICIES, "policy") == expected


def test_targets_and_divergences() -> None:
    assert part_from({"name": "teacher"}, TARGETS, "target") == Teacher()
    assert part_from({"name": "reverse_kl"}, DIVERGENCES, "divergence") == ReverseKL()
    table = {"name": "reverse_kl", "top_k": 4, "rest": "renormalised"}
    assert part_from(table, DIVERGENCES, "divergence") == ReverseKL(top_k=4, rest="renormalised")


def test_the_table_is_left_as_it_was() -> None:
    table = {"name": "trust_region", "kl_radius": dict(LINEAR)}
    part_from(table, POLICIES, "policy")
    assert table == {"name": "trust_region", "kl_radius": LINEAR}


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({}, r"policy.name is None; expected one of .*student.*trust_region"),
        ({"name": "trust_regoin"}, r"policy.name is 'trust_regoin'; expected one of "),
        ({"name": ["student"]}, r"policy.name is \['student'\]; expected one of "),
        ({"name": "trust_region"}, r"policy.kl_radius is missing; 'trust_region' needs it. Add it to \[policy\]."),
        ({"name": "trust_region", "kl_raduis": 0.1}, r"unknown .* 'policy.kl_raduis'. Did you mean policy.kl_radius\?"),
        (
            {"name": "student", "kl_radius": 0.1},
            r"policy.kl_radius is set, but .*'student'.*; it belongs to trust_region\.",
        ),
        ({"name": "student", "zzz": 0.1}, r"unknown configuration key 'policy.zzz'. Known here: none."),
        ({"name": "trust_region", "kl_radius": "0.1"}, r"policy.kl_radius is '0.1'; expected a number or a schedule"),
        ({"name": "trust_region", "kl_radius": True}, r"policy.kl_radius is True; expected a number or a schedule"),
        ({"name": "trust_region", "kl_radius": [0.1]}, r"policy.kl_radius is \[0.1\]; expected a number or a schedule"),
        ({"name": "trust_region", "kl_radius": -0.1}, r"policy.kl_radius is -0.1; .* cannot be negative. Use 0"),
        ({"name": "trust_region", "kl_radius": {**LINEAR, "stop": -1}}, r"policy.kl_radius reaches -1; "),
        ({"name": "trust_region", "kl_radius": {**LINEAR, "steps": 0}}, r"policy.kl_radius.steps is 0; .* at least 1"),
        ({"name": "trust_region", "kl_radius": {"start": 0.1}}, r"policy.kl_radius is a table without a schedule"),
        ({"name": "trust_region", "kl_radius": {**LINEAR, "step": 4}}, r"policy.kl_radius, .*'step'.* mean 'steps'\?"),
        ({"name": "trust_region", "kl_radius": {**LINEAR, "schedule": "liner"}}, r"is 'liner'; .*mean 'linear'\?"),
    ],
)
def test_refusals_of_a_policy(table: dict[str, Any], expected: str) -> None:
    refuse(table, POLICIES, "policy", expected)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"top_k": 0}, r"divergence.top_k is 0; a support needs at least 1 token"),
        ({"top_k": "16"}, r"divergence.top_k is '16'; expected a whole number"),
        ({"top_k": 1.5}, r"divergence.top_k is 1.5; expected a whole number"),
        ({"rest": "dropped"}, r"divergence.rest is 'dropped'; expected one of tail, renormalised, truncated"),
        ({"support": ["full"]}, r"divergence.support is \['full'\]; expected text"),
        ({"window": 3}, r"unknown configuration key 'divergence.window'"),
    ],
)
def test_refusals_of_a_divergence(fields: dict[str, Any], expected: str) -> None:
    refuse({"name": "reverse_kl", **fields}, DIVERGENCES, "divergence", expected)


def test_a_run_file_may_use_the_older_name_of_the_offline_policy() -> None:
    assert part_from({"name": "given"}, POLICIES, "policy") == part_from({"name": "offline"}, POLICIES, "policy")


def refuse(table: dict[str, Any], members: Mapping[str, type[Any]], key: str, expected: str) -> None:
    with pytest.raises(ConfigurationError, match=expected):
        part_from(table, members, key)


@dataclass(frozen=True)
class Blend:
    """A part with the kinds of fields that are not among our own yet."""

    teachers: list[str]
    weight: float | None = None
    flips: bool = False


def test_kinds_of_fields_to_come() -> None:
    """A whole number will do for a number; a field with contents of its own is the member's to check."""
    table = {"name": "blend", "teachers": ["a"], "weight": 1, "flips": True}
    assert part_from(table, {"blend": Blend}, "target") == Blend(["a"], 1, True)
    refuse({**table, "flips": 1}, {"blend": Blend}, "target", "target.flips is 1; expected true or false")
    refuse({**table, "weight": "1"}, {"blend": Blend}, "target", "target.weight is '1'; expected a number or nothing")
    refuse({"name": "blend"}, {"blend": Blend}, "target", "target.teachers is missing; 'blend' needs it")


def test_a_whole_number_for_a_field_of_numbers_is_one_that_tensors_take() -> None:
    alpha = part_from({"name": "alpha", "order": 10**12}, DIVERGENCES, "divergence")
    assert isinstance(alpha.order, float)  # type: ignore[attr-defined]
    assert isinstance(part_from({"name": "reverse_kl", "top_k": 4}, DIVERGENCES, "divergence").top_k, int)


def test_parts_inside_parts_and_lists_of_them() -> None:
    table = {
        "name": "cispo",
        "advantage": {
            "name": "sum",
            "terms": ["group_reward", {"name": "focal", "of": {"name": "group_reward", "scale": "none"}}],
            "coefficients": [1, {"schedule": "linear", "start": 0.2, "stop": 0.0, "steps": 4}],
        },
    }
    loss = part_from(table, LOSSES, "loss[0]")
    assert loss == CISPO(Sum((GroupReward(), Focal(GroupReward(scale="none"))), (1.0, Linear(0.2, 0.0, 4))))
    assert loss.at(2) == CISPO(Sum((GroupReward(), Focal(GroupReward(scale="none"))), (1.0, 0.1)))


def test_a_part_inside_a_part_is_named_in_full_wherever_its_refusal_names_it() -> None:
    table = {"name": "cispo", "advantage": {"name": "focal", "of": "group_reward", "right": -1}}
    expected = r"^loss\[0\]\.advantage\.right is -1; expected more than loss\[0\]\.advantage\.wrong = 0\.0\."
    refuse(table, LOSSES, "loss[0]", expected)
