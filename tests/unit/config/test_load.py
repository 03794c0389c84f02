"""What a run file and `--set` may say, and how they are refused."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tutelage.config import RunConfig, build_phases, load_config, resolve_config, to_toml
from tutelage.errors import ConfigurationError

RECIPES = sorted((Path(__file__).parents[3] / "recipes").glob("*.toml"))
NEEDED = {"student": "small", "teacher": "large", "data": "prompts.jsonl"}
RUN_FILE = """
student = "small"
teacher = { path = "large", dtype = "bfloat16" }
data = "prompts.jsonl"
steps = 7
[policy]
name = "trust_region"
kl_radius = { schedule = "linear", start = 0.05, stop = 0.0, steps = 4 }
[rollout]
max_new_tokens = 10
[evaluation]
sets = ["sums.jsonl", { path = "hard.jsonl", limit = 3 }]
"""


def config_of(*overrides: str, **table: Any) -> RunConfig:
    return resolve_config({**NEEDED, **table}, overrides)


def refusal(*overrides: str, **table: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        config_of(*overrides, **table)
    message = str(caught.value)
    assert "\n" not in message and "pydantic" not in message
    return message


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(RUN_FILE)
    return path


# Reading --------------------------------------------------------------------------------------------------------------


def test_a_run_file_says_what_differs_from_the_defaults(run_file: Path) -> None:
    config = load_config(run_file)
    assert (config.name, config.output_folder, config.steps) == ("tiny", "runs/tiny", 7)
    assert (config.student.path, config.teacher.path, config.teacher.dtype) == ("small", "large", "bfloat16")
    assert config.data.path == "prompts.jsonl"
    assert config.policy["kl_radius"] == {"schedule": "linear", "start": 0.05, "stop": 0.0, "steps": 4}
    assert (config.rollout.max_new_tokens, config.rollout.prompts_per_step) == (10, 64)
    assert [item.path for item in config.evaluation.sets] == ["sums.jsonl", "hard.jsonl"]
    assert (config.target, config.divergence) == ({"name": "teacher"}, {"name": "reverse_kl"})


def test_a_file_that_is_not_there_or_not_toml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"run file '.*nowhere\.toml' does not exist.*recipes/trb\.toml"):
        load_config(tmp_path / "nowhere.toml")
    (tmp_path / "broken.toml").write_bytes(b"steps = = 3\n")
    with pytest.raises(ConfigurationError, match=r"broken\.toml' is not valid TOML: .*Correct that line"):
        load_config(tmp_path / "broken.toml")


@pytest.mark.parametrize("key", ["student", "data"])
def test_what_only_the_user_can_know_is_asked_for(key: str) -> None:
    table = {name: value for name, value in NEEDED.items() if name != key}
    with pytest.raises(ConfigurationError, match=rf"{key} is missing.*--set {key}=\.\.\."):
        resolve_config(table)


def test_a_teacher_may_be_left_out_where_nothing_asks_it() -> None:
    table = {name: value for name, value in NEEDED.items() if name != "teacher"}
    config = resolve_config(table | {"reward": "correct", "loss": [{"name": "cispo"}]})
    (phase,) = build_phases(config)
    assert not phase.recipe.asks_teacher and not config.has_teacher and "[teacher]" not in to_toml(config)
    with pytest.raises(ConfigurationError, match=r"and the run has none\. Name one: --set teacher=PATH\."):
        build_phases(resolve_config(table))


def test_the_teacher_may_be_the_student() -> None:
    own = NEEDED | {
        "student": {"path": "s", "dtype": "bfloat16"},
        "teacher": {"weights": "student", "refresh_every": 1},
    }
    config = resolve_config(own)
    assert config.has_teacher and config.teacher.source == config.student.source
    assert read_back(config) == config and tomllib.loads(to_toml(config))["teacher"] == {
        "weights": "student",
        "refresh_every": 1,
        "share": 1.0,
    }
    for table, message in (
        ({"weights": "student", "path": "t"}, "teacher.path is set; such a teacher is the student alone"),
        ({"weights": "student", "server": "http://localhost:1"}, "teacher.server is set"),
        ({"path": "t", "refresh_every": 1}, "teacher.refresh_every is 1, and the teacher is another model"),
        ({"weights": "student", "share": 0.5}, "teacher.share is 0.5, but teacher.refresh_every is 0"),
    ):
        assert message in refusal(teacher=table)


def test_a_table_without_its_path_is_asked_for_it() -> None:
    assert refusal(teacher={"dtype": "bfloat16"}).startswith("teacher.path is missing")
    assert refusal(student={"dtype": "bfloat16"}).startswith("student.path is missing")
    assert refusal(evaluation={"sets": [{"name": "sums"}]}).startswith("evaluation.sets[0].path is missing")


# Overrides ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "keys", "expected"),
    [
        ("steps=3", "steps", 3),
        ("rollout.max_new_tokens=12", "rollout.max_new_tokens", 12),
        ("policy.kl_radius.start=0.1", "policy.kl_radius.start", 0.1),
        ("policy.kl_radius=1e-3", "policy.kl_radius", 1e-3),
        ("optimizer.learning_rate=1e-3", "optimizer.learning_rate", 1e-3),
        ("data.shuffle=true", "data.shuffle", True),
        ("student.trust_remote_code=false", "student.trust_remote_code", False),
        ("name=a run without quotes", "name", "a run without quotes"),
        ('name="a run in quotes"', "name", "a run in quotes"),
        ("output=/somewhere/runs/x=1", "output", "/somewhere/runs/x=1"),
        ("output=2026-01-31", "output", "2026-01-31"),
        ("data.system_prompt=Put it into \\boxed{}.", "data.system_prompt", "Put it into \\boxed{}."),
        ("data.system_prompt=", "data.system_prompt", ""),
        ("data.chat_template_kwargs.enable_thinking=false", "data.chat_template_kwargs", {"enable_thinking": False}),
        ("data.chat_template_kwargs={enable_thinking = true}", "data.chat_template_kwargs", {"enable_thinking": True}),
        (" steps =3", "steps", 3),
        ("student=other", "student.path", "other"),
        ("student=7", "student.path", "7"),
        ("teacher=other", "teacher.dtype", "bfloat16"),
        ("data=other.jsonl", "data.path", "other.jsonl"),
        ("policy=student", "policy", {"name": "student"}),
        ("policy={name = 'temperature', temperature = 0.8}", "policy", {"name": "temperature", "temperature": 0.8}),
        ("divergence.top_k=4", "divergence", {"name": "reverse_kl", "top_k": 4}),  # the default member is kept
    ],
)
def test_an_override_changes_one_thing(run_file: Path, override: str, keys: str, expected: object) -> None:
    value: Any = load_config(run_file, [override])
    for key in keys.split("."):
        value = value[key] if isinstance(value, dict) else getattr(value, key)
    assert value == expected and type(value) is type(expected)


def test_overrides_are_applied_in_order(run_file: Path) -> None:
    config = load_config(run_file, ["policy=trust_region", "policy.kl_radius=0.1", "steps=3", "steps=4"])
    assert config.policy == {"name": "trust_region", "kl_radius": 0.1} and config.steps == 4


@pytest.mark.parametrize(
    ("text", "paths"),
    [("a.jsonl", ["a.jsonl"]), ('["a.jsonl", "b.jsonl"]', ["a.jsonl", "b.jsonl"]), ('{path = "a.jsonl"}', ["a.jsonl"])],
)
def test_evaluation_sets_can_be_named_in_short(run_file: Path, text: str, paths: list[str]) -> None:
    config = load_config(run_file, [f"evaluation.sets={text}"])
    assert [item.path for item in config.evaluation.sets] == paths


@pytest.mark.parametrize("override", ["steps", "=3", " =3"])
def test_an_override_without_key_or_value_is_refused(override: str) -> None:
    assert f"--set got {override!r}; expected key.path=value, such as policy.kl_radius=0.1" in refusal(override)


def test_an_override_cannot_step_into_a_value() -> None:
    message = refusal("policy.kl_radius.start=0.1", policy={"name": "trust_region", "kl_radius": 0.01})
    assert "policy.kl_radius is a value, not a table" in message


# Unknown keys ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "unknown", "near"),
    [
        ("polcy=student", "polcy", "policy"),
        ("stesp=3", "stesp", "steps"),
        ("rollout.max_new_token=8", "rollout.max_new_token", "rollout.max_new_tokens"),
        ("optimiser.learning_rate=1", "optimiser", "optimizer"),
        ("optimizer.learningrate=1", "optimizer.learningrate", "optimizer.learning_rate"),
        ("student.pth=x", "student.pth", "student.path"),
        ("data.promt_column=x", "data.promt_column", "data.prompt_column"),
        ("checkpoint.evry=2", "checkpoint.evry", "checkpoint.every"),
        ("evaluation.set=x", "evaluation.set", "evaluation.sets"),
        ('evaluation.sets=[{path="a"}, {pth="b"}]', "evaluation.sets[1].pth", "evaluation.sets[1].path"),
        ("runtime.thread=1", "runtime.thread", "runtime.threads"),
        ("logging.step_per_log=1", "logging.step_per_log", "logging.steps_per_log"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(override: str, unknown: str, near: str) -> None:
    assert refusal(override) == f"unknown configuration key {unknown!r}. Did you mean {near}?"


def test_a_key_like_no_other_is_answered_with_the_known_ones() -> None:
    assert "Known here: best_metric, every, keep_last." in refusal("checkpoint.zzz=1")


# Values of the wrong kind ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({"steps": "many"}, "steps is 'many'; it should be a valid integer"),
        ({"steps": 0}, "steps is 0; it should be greater than or equal to 1"),
        ({"steps": 1.5}, "steps is 1.5; it should be a valid integer"),
        ({"steps": True}, "steps is true; it is not a yes-or-no setting"),
        ({"name": 7}, "name is 7; it should be a valid string, in quotes"),
        ({"seed": -1}, "seed is -1; it should be greater than or equal to 0"),
        ({"student": 7}, "student is 7; it should be a table"),
        ({"rollout": 7}, "rollout is 7; it should be a table"),
        ({"policy": 7}, "policy is 7; it should be a table"),
        ({"rollout": {"max_new_tokens": "long"}}, "rollout.max_new_tokens is 'long'; it should be a valid integer"),
        ({"rollout": {"max_new_tokens": True}}, "rollout.max_new_tokens is true; it is not a yes-or-no setting"),
        ({"rollout": {"max_new_tokens": 0}}, "rollout.max_new_tokens is 0; it must be at least 1."),
        ({"optimizer": {"learning_rate": -1.0}}, "optimizer.learning_rate is -1.0; it must be a positive number."),
        ({"optimizer": {"beta1": 1.0}}, "optimizer.beta1 is 1.0; expected 0 <= beta1 < 1."),
        ({"checkpoint": {"keep_last": 0}}, "checkpoint.keep_last is 0; it must be at least 1."),
        ({"student": {"path": "x", "dtype": "int8"}}, "student.dtype is 'int8'; it should be 'float32', 'bfloat16'"),
        ({"data": {"path": "x", "shuffle": "often"}}, "data.shuffle is 'often'; it should be a valid boolean"),
        ({"evaluation": {"temperature": float("inf")}}, "evaluation.temperature is inf; expected a finite number"),
        ({"evaluation": {"temperature": -1}}, "evaluation.temperature is -1; it should be greater than or equal to 0"),
        ({"evaluation": {"sets": 7}}, "evaluation.sets[0] is 7; it should be a table"),
        ({"evaluation": {"sets": ["a", 7]}}, "evaluation.sets[1] is 7; it should be a table"),
        ({"evaluation": {"sets": [{"path": "a", "limit": 0}]}}, "evaluation.sets[0].limit is 0; it should be greater"),
        ({"evaluation": {"sets": [{"path": "a", "name": "b/c"}]}}, "evaluation.sets[0].name is 'b/c', under which"),
        ({"evaluation": 7}, "evaluation is 7; it should be a table"),
    ],
)
def test_a_value_of_the_wrong_kind_is_named(table: dict[str, Any], expected: str) -> None:
    message = refusal(**table)
    assert message.startswith(expected)
    assert message.endswith((".", "..."))


# Writing it out again -------------------------------------------------------------------------------------------------


def read_back(config: RunConfig) -> RunConfig:
    return resolve_config(tomllib.loads(to_toml(config)))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_resolved_recipe_reads_back_as_itself(recipe: Path) -> None:
    config = load_config(recipe, ["data=prompts.jsonl"])
    assert config.name == recipe.stem, "a recipe is called like its file, and so is its folder of results"
    assert read_back(config) == config


def test_a_resolved_run_reads_back_as_itself(run_file: Path) -> None:
    overrides = ["data.verifier=", "data.answer_column=", "data.chat_template_kwargs.thinking=false", "seed=5"]
    overrides += ["data.limit=4", "optimizer.epsilon=1e-12", 'data.system_prompt="Déjà \\\\boxed{}\\n[x]\\t🙂"']
    config = load_config(run_file, overrides)
    assert config.data.system_prompt == "Déjà \\boxed{}\n[x]\t🙂"
    assert read_back(config) == config
    assert read_back(config_of()) == config_of()


def test_the_resolved_file_names_every_default() -> None:
    """A run can be repeated from its config.toml even after a default has changed."""
    written = tomllib.loads(to_toml(config_of()))
    assert written["rollout"]["prompts_per_step"] == 64 and written["optimizer"]["beta2"] == 0.999
    for section, value in config_of().model_dump().items():
        if isinstance(value, dict) and section != "policy":
            assert {key for key, item in value.items() if item is not None} == set(written[section])


def test_no_default_is_lost_for_want_of_a_null_in_toml() -> None:
    """TOML has no null: a field that may be None must have None as its default, or it could not be written down."""
    for name, field in RunConfig.model_fields.items():
        for inner, item in getattr(field.annotation, "model_fields", {}).items():
            if re.search("None", str(item.annotation)):
                assert item.default is None, f"{name}.{inner}"


def test_a_path_may_name_the_split() -> None:
    table = {"student": "s", "teacher": "t", "data": "openai/gsm8k:main[train[:9]]"}
    table |= {"evaluation": {"sets": ["openai/gsm8k:main[train]", "gsm8k", {"path": "a:b[x]", "split": "x"}]}}
    config = resolve_config(table)
    assert (config.data.path, config.data.split) == ("openai/gsm8k:main", "train[:9]")
    named = [(each.path, each.split) for each in config.evaluation.sets]
    assert named == [("openai/gsm8k:main", "train"), ("gsm8k", "test"), ("a:b", "x")]
    assert resolve_config(tomllib.loads(to_toml(config))) == config
    with pytest.raises(ConfigurationError, match=r"'o/n\[train\]' names the split 'train', and `split` .* is 'test'"):
        resolve_config({**table, "data": {"path": "o/n[train]", "split": "test"}})
    with pytest.raises(ConfigurationError, match=r"gsm8k is a benchmark .* openai/gsm8k:main\[train\]"):
        resolve_config({**table, "evaluation": {"sets": ["gsm8k[train]"]}})
