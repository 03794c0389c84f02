"""Every file in recipes/ is a run: it loads, says how it differs from plain OPD, and takes a step on a small pair."""

from __future__ import annotations

import json
import math
import re
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tutelage.advantages import Focal
from tutelage.cli import app
from tutelage.config import build_phases, build_recipe, build_run, load_config
from tutelage.demo import student_path, teacher_path, write_problems
from tutelage.divergences import SampledNLL
from tutelage.losses.tokens import CISPO, ClippedSurrogate
from tutelage.policies import Interleaved, Student, Teacher, Temperature
from tutelage.training import Observer, Recipe, train

FOLDER = Path(__file__).parents[2] / "recipes"
RECIPES = sorted(FOLDER.glob("*.toml"))
WITHOUT_TEACHER = {"grpo", "dr_grpo", "rloo", "dapo", "cispo", "gspo", "f_grpo", "f_dapo", "f_cispo", "dynamic_rewards"}
OWN_TEACHER = {"opsd", "sdft"}
WITH_REWARDS = WITHOUT_TEACHER | {"kdrl", "kdrl_annealed", "kdrl_masked", "rlad", "rlsd", "opd_then_rl"}
# So few tokens are never a right answer; this one calls some of them right.
SPREAD = ["data.verifier=tests.support.verdicts:has_an_odd_length", "rollout.samples_per_prompt=4"]
SMALL = [
    "rollout.prompts_per_step=2",
    "rollout.samples_per_prompt=2",
    "rollout.max_new_tokens=6",
    "rollout.max_rows=4",
    "data.max_prompt_tokens=400",
    "runtime.device=cpu",
    "runtime.threads=1",
    "evaluation.num_samples=1",
    "evaluation.max_new_tokens=6",
]

each_recipe = pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("problems") / "problems.jsonl"
    write_problems(path, 6, seed=1)
    return path


def few_updates(recipe: Path) -> list[str]:
    """No more updates of a batch than the small runs have prompts."""
    optimizer = tomllib.loads(recipe.read_text())["optimizer"]
    return ["optimizer.updates_per_batch=2"] if optimizer.get("updates_per_batch", 1) > 1 else []


def one_step_per_phase(recipe: Path) -> list[str]:
    """Overrides that leave each phase one step, so that every one is entered."""
    phases = tomllib.loads(recipe.read_text()).get("phase", [])
    with_end = [place for place, phase in enumerate(phases, start=1) if "steps" in phase]
    return [f"steps={max(1, len(phases))}", *(f"phase.{place}.steps=1" for place in with_end)]


def test_there_are_recipes() -> None:
    of_the_comparison = {"opd", "trb", "fixed_budget", "skd", "temperature_warmup", "sft_warmup", "veto"}
    neighbours = {"gkd", "minillm_single_step", "thinking_machines_pg", "exopd", "eopd", "tip", "tropd"}
    rivals = {"resopd", "top_d", "fixed_negative", "reopd", "simple_opd", "tisd"}
    others = {"lora", "linear_student", "field_defaults", "field_defaults_lora"}
    assert of_the_comparison | neighbours | rivals | others | OWN_TEACHER | WITH_REWARDS == {
        path.stem for path in RECIPES
    }


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
        size = tomllib.loads(recipe.read_text())["rollout"]["prompts_per_step"]
        assert size == 64 or f"{size} prompts" in text or re.search(r"\(opd\.toml\): as \w+\.toml, with", text)


def method_of(name: str) -> Recipe:
    (*_, phase) = build_phases(load_config(FOLDER / f"{name}.toml", ["data=prompts.jsonl"]))
    return phase.recipe


def test_methods_with_rewards_are_points_of_the_same_space() -> None:
    """Each differs from another one in the part that is its idea."""
    grpo, dapo, cispo = (method_of(name) for name in ("grpo", "dapo", "cispo"))
    (surrogate,) = grpo.losses
    assert surrogate == ClippedSurrogate(normaliser="sequence_mean") and method_of("opd_then_rl").losses == (
        ClippedSurrogate(),
    )
    for name, plain in (("f_grpo", grpo), ("f_dapo", dapo), ("f_cispo", cispo)):
        reward = "correct" if name == "f_dapo" else "reward"
        (loss,) = plain.losses
        assert isinstance(loss, ClippedSurrogate | CISPO)
        assert method_of(name).losses == (replace(loss, advantage=Focal(gamma=0.5, reward=reward)),)
    annealed = method_of("kdrl_annealed")
    assert [annealed.at(step).losses[1].factor for step in (0, 40, 80, 400)] == pytest.approx([5e-3, 3e-3, 1e-3, 1e-3])
    assert method_of("kdrl").losses == annealed.at(400).losses
    assert [method_of(name).asks_teacher for name in ("grpo", "rlad", "rlsd", "kdrl")] == [False, True, True, True]


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("trb", {"policy"}),
        ("fixed_budget", {"policy"}),
        ("skd", {"policy"}),
        ("temperature_warmup", {"policy"}),
        ("sft_warmup", {"phase"}),
        ("veto", {"target"}),
        ("exopd", {"target"}),
        ("gkd", {"divergence"}),
        ("thinking_machines_pg", {"divergence"}),
        ("eopd", {"divergence"}),
        ("minillm_single_step", {"policy", "divergence"}),
        ("tropd", {"policy", "divergence"}),
        ("tip", {"divergence", "weighting"}),
        ("lora", {"student"}),
        ("field_defaults", {"steps", "divergence", "rollout", "optimizer"}),
        ("field_defaults_lora", {"steps", "student", "divergence", "rollout", "optimizer"}),
        ("resopd", {"divergence"}),
        ("tisd", {"policy"}),
        ("reopd", {"data", "divergence", "rollout", "optimizer"}),
        ("simple_opd", {"steps", "student", "policy", "divergence", "rollout", "optimizer", "evaluation"}),
        ("fixed_negative", {"teacher", "target", "divergence", "loss", "weighting", "optimizer"}),
        ("top_d", {"target", "divergence", "loss", "rollout", "optimizer"}),
        ("opsd", {"student", "teacher", "data", "divergence", "rollout", "optimizer"}),
        ("sdft", {"student", "teacher", "data", "divergence", "rollout"}),
    ],
)
def test_recipes_differ_from_plain_distillation_in_their_method_only(name: str, keys: set[str]) -> None:
    plain, other = (tomllib.loads((FOLDER / f"{stem}.toml").read_text()) for stem in ("opd", name))
    different = {key for key in plain.keys() | other.keys() if plain.get(key) != other.get(key)}
    assert different == {"name", *keys}


@pytest.mark.parametrize("name", ["field_defaults", "field_defaults_lora"])
def test_the_fields_sizes(name: str) -> None:
    config = load_config(FOLDER / f"{name}.toml", ["data=prompts.jsonl"])
    rollout = config.rollout
    assert (rollout.prompts_per_step, rollout.samples_per_prompt, rollout.max_new_tokens) == (128, 1, 2048)
    assert config.student.learns_whole == (name == "field_defaults")


def test_the_papers_budgets() -> None:
    trb = build_recipe(load_config(FOLDER / "trb.toml", ["data=prompts.jsonl"])).policy
    fixed = build_recipe(load_config(FOLDER / "fixed_budget.toml", ["data=prompts.jsonl"])).policy
    opd = build_recipe(load_config(FOLDER / "opd.toml", ["data=prompts.jsonl"])).policy
    assert trb.at(0).kl_radius == pytest.approx(0.02) and trb.at(25).kl_radius == pytest.approx(0.01)
    assert fixed.at(0).kl_radius == fixed.at(399).kl_radius == 0.01
    assert trb.at(50) == opd.at(0) and not opd.needs_teacher and fixed.needs_teacher


def test_the_papers_other_baselines() -> None:
    names = ("sft_warmup", "temperature_warmup", "skd")
    sft, warm, skd = (build_phases(load_config(FOLDER / f"{name}.toml", ["data=prompts.jsonl"])) for name in names)
    opd = build_recipe(load_config(FOLDER / "opd.toml", ["data=prompts.jsonl"]))
    assert [(phase.name, phase.first_step) for phase in sft] == [("sft", 0), ("opd", 25)]
    assert (sft[0].recipe.policy, sft[0].recipe.losses) == (Teacher(), (SampledNLL(),))
    assert sft[1].recipe == opd
    assert warm[0].recipe.policy.at(0) == Temperature(0.9) and warm[0].recipe.policy.at(25) == Student()
    assert skd[0].recipe.policy == Interleaved(25, 0.2)


@each_recipe
def test_a_recipe_takes_a_step(recipe: Path, problems: Path, tmp_path: Path) -> None:
    sets = f'evaluation.sets=[{{path = "{problems}", limit = 2}}]'
    models = [f"student={student_path()}"]
    if recipe.stem == "linear_student":  # made of its teacher
        linear = tmp_path / "linear"
        done = CliRunner().invoke(
            app, ["linearise", str(student_path()), "--layers", "every-other", "--output", str(linear)]
        )
        assert done.exit_code == 0, done.output
        models = [f"student={linear}", f"teacher={student_path()}"]
    if recipe.stem not in WITHOUT_TEACHER | OWN_TEACHER | {"fixed_negative", "linear_student"}:
        models += [f"teacher={teacher_path()}"]
    models += ["data.verifier=math", "data.answer_column=answer"] if recipe.stem == "reopd" else []
    models += SPREAD if recipe.stem in WITH_REWARDS else []
    overrides = [f"data={problems}", f"output={tmp_path / 'run'}", sets, *SMALL, *models, *one_step_per_phase(recipe)]
    run = build_run(load_config(recipe, [*overrides, *few_updates(recipe)]))
    train(run, Observer())
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line.get("phase") for line in lines] == [phase.name for phase in run.learning.phases]
    for metrics in lines:
        assert math.isfinite(metrics["loss"]) and metrics["grad_norm"] > 0
    weights = "model" if run.models.student.trainable.changes_backbone else "adapter_model"
    assert (tmp_path / f"run/checkpoints/step-{len(lines):06d}/{weights}.safetensors").is_file()
