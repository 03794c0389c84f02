"""Every file in recipes/ is a run: it loads, says how it differs from plain OPD, and takes a step on the tiny pair."""

from __future__ import annotations

import json
import math
import tomllib
from pathlib import Path

import pytest

from tests.tiny_run import save_pair, write_prompts
from tutelage.config import build_recipe, build_run, load_config
from tutelage.training import Observer, train

FOLDER = Path(__file__).parents[2] / "recipes"
RECIPES = sorted(FOLDER.glob("*.toml"))
SMALL = [
    "steps=1",
    "rollout.prompts_per_step=2",
    "rollout.samples_per_prompt=2",
    "rollout.max_new_tokens=6",
    "rollout.max_rows=4",
    "data.max_prompt_tokens=400",
    "runtime.device=cpu",
    "runtime.threads=1",
    "evaluation.num_samples=1",
]

each_recipe = pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return save_pair(tmp_path_factory.mktemp("pair"))


def test_there_are_recipes() -> None:
    assert {"opd", "trb", "fixed_budget"} <= {path.stem for path in RECIPES}


@each_recipe
def test_a_recipe_opens_with_what_it_is(recipe: Path) -> None:
    lines = recipe.read_text().splitlines()
    heading = []
    for line in lines:
        if not line.startswith("#"):
            break
        heading.append(line)
    text = "\n".join(heading)
    assert len(heading) >= 3 and "arXiv" in text
    assert f"tutelage train recipes/{recipe.name}" in text
    if recipe.stem == "opd":
        assert "Plain on-policy distillation" in lines[0]
    else:
        assert "Differs from plain OPD (opd.toml)" in text


@pytest.mark.parametrize("name", ["trb", "fixed_budget"])
def test_these_recipes_differ_from_plain_distillation_in_the_policy_only(name: str) -> None:
    plain, other = (tomllib.loads((FOLDER / f"{stem}.toml").read_text()) for stem in ("opd", name))
    different = {key for key in plain.keys() | other.keys() if plain.get(key) != other.get(key)}
    assert different == {"name", "policy"}


def test_the_papers_budgets() -> None:
    trb = build_recipe(load_config(FOLDER / "trb.toml", ["data=prompts.jsonl"])).policy
    fixed = build_recipe(load_config(FOLDER / "fixed_budget.toml", ["data=prompts.jsonl"])).policy
    opd = build_recipe(load_config(FOLDER / "opd.toml", ["data=prompts.jsonl"])).policy
    assert trb.at(0).kl_radius == pytest.approx(0.02) and trb.at(25).kl_radius == pytest.approx(0.01)
    assert fixed.at(0).kl_radius == fixed.at(399).kl_radius == 0.01
    assert trb.at(50) == opd.at(0) and not opd.needs_teacher and fixed.needs_teacher


@each_recipe
def test_a_recipe_takes_a_step(recipe: Path, pair: tuple[Path, Path], tmp_path: Path) -> None:
    student, teacher = pair
    prompts = write_prompts(tmp_path / "prompts.jsonl", count=4)
    overrides = [f"student={student}", f"teacher={teacher}", f"data={prompts}", f"output={tmp_path / 'run'}", *SMALL]
    train(build_run(load_config(recipe, overrides)), Observer())
    (metrics,) = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert math.isfinite(metrics["loss"]) and metrics["grad_norm"] > 0
    assert (tmp_path / "run" / "checkpoints" / "step-000001" / "model.safetensors").is_file()
