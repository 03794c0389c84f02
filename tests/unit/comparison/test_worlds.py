"""A recipe in another world: the method stays, horizons keep their share, and every change is told."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tutelage.comparison.plan import make_methods
from tutelage.comparison.worlds import World, in_world, read_world, scaled_horizons
from tutelage.config import build_phases, build_recipe, read_run_file, resolve_config
from tutelage.demo import embedded
from tutelage.demo.embedded import embedded_world
from tutelage.errors import ConfigurationError

ROOT = Path(__file__).parents[3]
SMALL = {"student": "s", "teacher": "t", "data": "d", "steps": 60}


@pytest.fixture(scope="module", autouse=True)
def problems_are_made_once() -> Iterator[None]:
    """The same texts for every recipe."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedded, "problem_lines", functools.cache(embedded.problem_lines))
        yield


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.toml")), ids=lambda path: path.stem)
def test_every_recipe_keeps_its_method_in_the_embedded_world(recipe: Path, tmp_path: Path) -> None:
    table = read_run_file(recipe)
    world = embedded_world(tmp_path, steps=table.get("steps", 400), num_problems=4, seed=0)
    moved, _ = in_world(table, world)
    assert {key: moved.get(key) for key in ("policy", "target", "divergence", "phase")} == {
        key: table.get(key) for key in ("policy", "target", "divergence", "phase")
    }
    assert moved["student"].get("adapter") == table["student"].get("adapter"), "what learns is part of the method"
    assert ("weights" in moved["teacher"]) == ("weights" in table.get("teacher", {})), "so is a student that teaches"
    config = resolve_config(moved)
    build_recipe(config)
    assert config.data.privileged_column == table["data"].get("privileged_column")
    assert config.rollout.max_new_tokens == 90 and config.evaluation.greedy and config.student.path != "Qwen/Qwen3-1.7B"


def test_horizons_keep_their_share() -> None:
    table = {
        "policy": {
            "kl_radius": {"schedule": "linear", "start": 0.02, "stop": 0.0, "steps": 50},
            "other": {"schedule": "piecewise", "points": [[0, 1.0], [10, 0.5], [11, 0.0], [200, 0.0]]},
        },
        "phase": [
            {"steps": 15, "policy": "teacher"},
            {"steps": 85, "target": {"weight": {"schedule": "cosine", "start": 1, "stop": 0, "steps": 1}}},
            {"policy": "student"},
        ],
        "steps": 400,
    }
    moved, changes = scaled_horizons(table, 400, 60)
    assert moved["policy"]["kl_radius"]["steps"] == 8
    assert moved["policy"]["other"]["points"] == [[0, 1.0], [2, 0.5], [3, 0.0], [30, 0.0]], "points still increase"
    assert [phase.get("steps") for phase in moved["phase"]] == [2, 13, None], "their ends, 15 and 100, are scaled"
    assert moved["phase"][1]["target"]["weight"]["steps"] == 1, "a horizon is never shorter than a step"
    assert "policy.kl_radius.steps 50 -> 8" in changes and "phase.1.steps 15 -> 2" in changes
    assert table["policy"]["kl_radius"]["steps"] == 50 and table["phase"][0]["steps"] == 15, "the table is untouched"


def test_phases_that_fill_the_run_still_do() -> None:
    phases = [{"steps": 33}, {"steps": 33}, {"steps": 34}]
    for now in (7, 10, 55, 400):
        moved, _ = scaled_horizons({"phase": phases}, 100, now)
        assert sum(phase["steps"] for phase in moved["phase"]) == now


def test_an_adapter_stays_and_its_rate_follows_the_worlds(tmp_path: Path) -> None:
    adapter = {"rank": 4, "learning_rate_factor": 10}
    table = {"student": {"path": "big", "adapter": adapter}, "optimizer": {"learning_rate": 1e-5}}
    moved, _ = in_world(table, World("w", {**SMALL, "optimizer": {"learning_rate": 2e-4}}, {}))
    assert moved["student"] == {"path": "s", "adapter": adapter}
    (phase,) = build_phases(resolve_config(moved))
    assert phase.optimizer.learning_rate == pytest.approx(2e-3)


def test_what_is_replaced_is_told(tmp_path: Path) -> None:
    table = {
        "steps": 400,
        "student": "big",
        "reference": {"path": "other"},
        "rollout": {"max_rows": 16, "support_size": 100},
        "policy": "student",
    }
    world = World("w", {**SMALL, "rollout": {"max_rows": 256}}, {})
    moved, changes = in_world(table, world)
    assert moved == {**SMALL, "policy": "student", "rollout": {"max_rows": 256, "support_size": 100}}
    assert changes == [
        "steps 400 -> 60",
        "student",
        "teacher",
        "reference left out",
        "data",
        "rollout.max_rows 16 -> 256",
    ]


def test_a_world_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "small.toml"
    path.write_text('steps = 10\nstudent = "s"\nteacher = "t"\ndata = "d"\n')
    assert read_world(path).tables["steps"] == 10
    path.write_text(path.read_text() + 'policy = "teacher"\n')
    with pytest.raises(ConfigurationError, match="sets policy; .* recipes have the method"):
        read_world(path)
    path.write_text('student = "s"\nteacher = "t"\n')
    with pytest.raises(ConfigurationError, match="has no data"):
        read_world(path)


def test_the_embedded_worlds_files_depend_on_the_seed(tmp_path: Path) -> None:
    first, again, other = (embedded_world(tmp_path, steps=1, num_problems=3, seed=seed).files for seed in (0, 0, 1))
    assert first == again
    assert {path.name: text.count("\n") for path, text in first.items()} == {"prompts.jsonl": 16, "problems.jsonl": 3}
    assert not set(first.values()) & set(other.values())
    with pytest.raises(ConfigurationError, match="expected 0 to 999"):
        embedded_world(tmp_path, steps=1, num_problems=3, seed=1000)


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": "many"},
        {"steps": 0},
        {"student": 5},
        {"student": []},
        {"rollout": 5},
        {"phase": 7},
        {"phase": [7]},
        {"phase": [{"steps": "x"}]},
        {"policy": {"name": "trust_region", "kl_radius": {"schedule": "piecewise", "points": [1]}}},
        {"policy": {"name": "trust_region", "kl_radius": {"schedule": "piecewise", "points": [[0.5, 1], [1]]}}},
    ],
)
def test_shapes_that_cannot_be_moved_are_one_line(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        make_methods([{"name": "mine", "policy": "student", **wrong}], [], World("small", SMALL, {}))
    assert str(caught.value).startswith("mine: ") and "\n" not in str(caught.value)
    if "phase" not in wrong and "policy" not in wrong:
        with pytest.raises(ConfigurationError, match=r"the world odd: "):
            make_methods([{"name": "mine"}], [], World("odd", SMALL | wrong, {}))
