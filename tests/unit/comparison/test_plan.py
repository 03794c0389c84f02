"""What may be compared, and what a folder of a comparison holds before the first step."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.support.tiny_run import write_prompts
from tutelage.comparison.plan import Plan, check_comparable, make_methods, open_folder, shared_texts
from tutelage.comparison.worlds import World
from tutelage.config import load_config
from tutelage.errors import ConfigurationError, OutputExistsError


def table(name: str, **values: Any) -> dict[str, Any]:
    sets = [{"path": "problems.jsonl"}]
    return {"name": name, "student": "s", "teacher": "t", "data": "d", "evaluation": {"sets": sets}, **values}


OPD = table("opd")
TRB = table("trb", policy={"name": "trust_region", "kl_radius": 0.02})


def test_overrides_are_for_all_or_for_one() -> None:
    opd, trb = make_methods([OPD, TRB], ["steps=7", "trb:policy.kl_radius=0.5", "data=a:b.jsonl"], None)
    assert opd.config.steps == trb.config.steps == 7
    assert trb.config.policy["kl_radius"] == 0.5 and opd.config.policy == {"name": "student"}
    assert opd.config.data.path == "a:b.jsonl", "a colon after the equals sign belongs to the value"
    assert TRB["policy"]["kl_radius"] == 0.02, "the tables are untouched"
    with pytest.raises(ConfigurationError, match="no method is called 'skd'. There are opd, trb"):
        make_methods([OPD, TRB], ["skd:steps=7"], None)


def test_a_bad_run_file_is_refused_with_its_name() -> None:
    with pytest.raises(ConfigurationError, match="^trb: .*kl_radius.*negative"):
        make_methods([OPD, TRB], ["trb:policy.kl_radius=-1"], None)
    with pytest.raises(ConfigurationError, match="2 of the run files have the name 'opd'"):
        make_methods([OPD, OPD], [], None)
    with pytest.raises(ConfigurationError, match="^opd: data is missing.* --world embedded"):
        make_methods([{"name": "opd", "student": "s", "teacher": "t"}], [], None)


def test_an_override_goes_before_a_scaled_horizon() -> None:
    world = World("w", {"steps": 40, "student": "s", "teacher": "t", "data": "d"}, {})
    schedule = {"schedule": "linear", "start": 0.1, "stop": 0.0, "steps": 50}
    tables = [{**TRB, "steps": 400, "policy": {"name": "trust_region", "kl_radius": schedule}}]
    (scaled,) = make_methods(tables, [], world)
    (given,) = make_methods(tables, [], world, {"trb": ["policy.kl_radius.steps=25"]})
    assert scaled.config.policy["kl_radius"]["steps"] == 5 and "policy.kl_radius.steps 50 -> 5" in scaled.changes
    assert given.config.policy["kl_radius"]["steps"] == 25 and not any("kl_radius" in x for x in given.changes)


@pytest.mark.parametrize(
    "override",
    [
        "data.limit=3", "student=other", "teacher.dtype=bfloat16", "evaluation.num_samples=9", "steps=9",
        "rollout.prompts_per_step=9", "rollout.max_new_tokens=9", "evaluation.every=9",
    ],
)  # fmt: skip
def test_unequal_runs_are_refused_by_the_key(override: str) -> None:
    key, _, value = override.partition("=")
    with pytest.raises(ConfigurationError, match=rf"differ in more than the method: {key}.* is .*{value}.* for trb"):
        check_comparable(make_methods([OPD, TRB], [f"trb:{override}"], None))
    assert check_comparable(make_methods([OPD, TRB], [override], None)) == []


def test_a_student_that_teaches_itself_is_compared_with_another_teachers() -> None:
    own = table(
        "opsd", teacher={"weights": "student", "refresh_every": 1}, data={"path": "d", "privileged_column": "s"}
    )
    assert check_comparable(make_methods([OPD, own, TRB], [], None)) == []
    with pytest.raises(ConfigurationError, match="teacher.path is 't' for opd, 'other' for trb. A"):
        check_comparable(make_methods([OPD, own, TRB], ["trb:teacher=other"], None))


def test_other_differences_are_named() -> None:
    methods = make_methods([OPD, TRB], ["trb:optimizer.learning_rate=0.5", "opd:rollout.prompts_per_step=9"], None)
    (note,) = check_comparable(methods, free=["rollout.prompts_per_step"])
    assert note == "optimizer.learning_rate is 1e-05 for opd, 0.5 for trb"


def test_texts_that_are_trained_on_and_judged(tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path / "prompts.jsonl")
    problems = tmp_path / "problems.jsonl"
    problems.write_text('{"problem": "What is  3 + 6?\\n", "answer": "9"}\n{"problem": "New?", "answer": "1"}\n')
    overrides = [f"data={prompts}", f'evaluation.sets=["{problems}"]']
    (method,) = make_methods([OPD], overrides, None)
    assert shared_texts(method.config) == ["What is 3 + 6?"]
    (method,) = make_methods([OPD], [*overrides, "data.limit=3"], None)
    assert shared_texts(method.config) == []


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return Plan(tmp_path / "c", make_methods([OPD, TRB], [], None), range(2))


def test_everything_is_written_before_the_first_step(plan: Plan) -> None:
    world = World("w", {}, {plan.folder / "data" / "x.jsonl": "x"})
    open_folder(plan, world, resume=False)
    assert (plan.folder / "data" / "x.jsonl").read_text() == "x"
    written = json.loads((plan.folder / "plan.json").read_text())
    assert written["seeds"] == [0, 1] and written["methods"]["trb"]["policy.kl_radius"] == 0.02
    assert [job.name for job in plan.jobs()] == ["opd seed 0", "trb seed 0", "opd seed 1", "trb seed 1"]
    for job, seed in zip(plan.jobs(), (0, 0, 1, 1), strict=True):
        config = load_config(job.run_file)
        assert (config.seed, config.output_folder) == (seed, str(job.folder))


def test_all_runs_are_told_the_date_of_the_plan(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tutelage.tasks.clock._now", lambda: datetime(2026, 3, 1))
    open_folder(plan, None, resume=False)
    monkeypatch.setattr("tutelage.tasks.clock._now", lambda: datetime(2026, 3, 2))
    open_folder(replace(plan, seeds=range(3)), None, resume=True)
    dates = {load_config(job.run_file).data.template_date for job in replace(plan, seeds=range(3)).jobs()}
    assert dates == {"2026-03-01T00:00:00"}


def test_a_folder_is_continued_as_it_was_begun_or_not_at_all(plan: Plan) -> None:
    with pytest.raises(ConfigurationError, match="holds no comparison"):
        open_folder(plan, None, resume=True)
    open_folder(plan, None, resume=False)
    before = {path: path.read_bytes() for path in plan.folder.rglob("*") if path.is_file()}
    with pytest.raises(OutputExistsError, match="--resume"):
        open_folder(plan, None, resume=False)
    changed = [
        (replace(plan, methods=plan.methods[:1]), "methods are opd, were opd, trb"),
        (replace(plan, methods=make_methods([OPD, TRB], ["steps=3"], None)), "opd: steps is 3, was 400"),
        (replace(plan, checkpoint_rule="best"), "checkpoint_rule is 'best', was 'last'"),
        (replace(plan, world="w"), "world is 'w', was None"),
        (replace(plan, seeds=range(1, 3)), "seeds 0 are left out"),
    ]
    for other, message in changed:
        with pytest.raises(ConfigurationError, match=message):
            open_folder(other, None, resume=True)
    open_folder(plan, None, resume=True)
    assert {path: path.read_bytes() for path in plan.folder.rglob("*") if path.is_file()} == before
    open_folder(replace(plan, seeds=range(3)), None, resume=True)
    assert load_config(plan.folder / "runs" / "trb" / "seed-2.toml").seed == 2
