"""Runs with more than a student and a teacher: references, past selves, routed and fused teachers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.quick_run import StopAt, made, metrics
from tests.support.tiny_run import make_tokenizer, save_model, write_run_file
from tutelage.errors import ConfigurationError, RunInterrupted
from tutelage.training import GradientUpdate, Observer, train
from tutelage.types import StepResult


def third_model(folder: Path, seed: int = 5) -> Path:
    return save_model(folder, make_tokenizer(), padded_size=264, stop_ids=256, seed=seed, max_position_embeddings=2048)


PAST = ["target.name=self_past", "target.past_weight=0.5", "reference.refresh_every=2", "steps=5"]


def stopped_in(step: int) -> type[GradientUpdate]:
    """An update that is interrupted while it is prepared at a step."""

    class Stopped(GradientUpdate):
        def prepare(self, now: int, *given: Any) -> Any:
            if now == step:
                raise RunInterrupted("stopped")
            return super().prepare(now, *given)

    return Stopped


@pytest.mark.parametrize(("share", "is_inside_step"), [(1.0, False), (0.25, False), (0.25, True)])
def test_a_moving_reference_is_resumed_to_the_same_bytes(tmp_path: Path, share: float, is_inside_step: bool) -> None:
    """Interrupted after 1, 2 and 3 updates, between refreshes and at one; a copy, and a mean, of which all is kept."""
    path, past = write_run_file(tmp_path), [*PAST, f"reference.share={share}"]
    run = made(path, *past, f"output={tmp_path}/whole")
    seen = []

    class Watch(Observer):
        def on_step(self, result: StepResult) -> None:
            weights = [model.module.model.norm.weight.clone() for model in (run.models.reference, run.models.student)]
            seen.append(weights)

    train(run, Watch())
    mean = seen[0][0]
    for step in range(2, 5):  # refreshed with the weights after 0, 2 and 4 updates, which `seen` has from 1 on
        if step % 2 == 0:
            mean = torch.lerp(mean, seen[step - 1][1], share)
        reference, student = seen[step - 1][0], seen[step][1]
        assert torch.equal(reference, mean)
        assert not torch.equal(reference, student)
        assert torch.equal(reference, seen[step // 2 * 2 - 1][1]) == (share == 1)

    output = f"output={tmp_path}/cut"
    for last, resume in ((0, False), (1, True), (2, True)):
        run = made(path, *past, output, resume=resume)
        if is_inside_step:
            run.learning = replace(run.learning, update=stopped_in(last + 1))
        with pytest.raises(RunInterrupted):
            train(run, Observer() if is_inside_step else StopAt(last))
        kept = tmp_path / f"cut/checkpoints/step-{last + 1:06d}"
        assert (kept / "past.pt").exists() == ((last + 1) % 2 == 1 or share < 1)
    train(made(path, *past, output, resume=True), Observer())
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
    for name in ("model.safetensors", "past.pt", "optimizer.pt"):
        cut, whole = (tmp_path / run / "checkpoints/step-000005" / name for run in ("cut", "whole"))
        assert cut.read_bytes() == whole.read_bytes()
    with pytest.raises(ConfigurationError, match=r"reference\.share is 0\.5, was"):
        made(path, *past, "reference.share=0.5", output, resume=True)


def test_a_mean_of_a_student_in_bfloat16_is_kept_in_float32(tmp_path: Path) -> None:
    path, narrow = write_run_file(tmp_path), [*PAST, "student.dtype=bfloat16"]
    for share, dtype in ((1.0, torch.bfloat16), (0.1, torch.float32)):
        run = made(path, *narrow, f"reference.share={share}", "steps=2", f"output={tmp_path}/{share}")
        assert run.models.reference.module.dtype == dtype and run.models.student.module.dtype == torch.bfloat16
        train(run, Observer())


def test_a_reference_of_its_own_and_the_students_first_weights(tmp_path: Path) -> None:
    path, other = write_run_file(tmp_path), third_model(tmp_path / "third")
    target = ["target.name=extrapolated", "steps=2"]
    losses = {}
    for name, overrides in {
        "first": [],
        "scale one": ["target.reward_scale=1.0"],
        "other": [f"reference={other}"],
        "other, full": [f"reference.path={other}", "divergence.support=full", "reference.reads=teacher"],
    }.items():
        train(made(path, *target, *overrides, f"output={tmp_path}/{name}"), Observer())
        losses[name] = [record["loss"] for record in metrics(tmp_path / name)]
    train(made(path, "steps=2", f"output={tmp_path}/plain"), Observer())
    plain = [record["loss"] for record in metrics(tmp_path / "plain")]
    assert losses["scale one"] == pytest.approx(plain, rel=1e-6)
    assert len({round(values[0], 4) for values in losses.values()}) == 4


def test_rows_name_their_teacher(tmp_path: Path) -> None:
    path, other = write_run_file(tmp_path), third_model(tmp_path / "third")
    prompts = tmp_path / "prompts.jsonl"
    rows = [json.loads(line) for line in prompts.read_text().splitlines()]
    route = f"teacher.routes.other.path={other}"
    with pytest.raises(ConfigurationError, match=r"routes has other, but no row names a teacher in column 'teacher'"):
        made(path, route)
    rows = [{**row, "teacher": "other" if place % 2 else ""} for place, row in enumerate(rows)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = made(path, route, "steps=2")
    assert [prompt.teacher_name for prompt in run.source.prompts[:4]] == [None, "other", None, "other"]
    train(run, Observer())
    assert len(metrics(tmp_path / "run")) == 2
    with pytest.raises(ConfigurationError, match=r"sum/1 names the teacher 'other' .* teacher\.routes has code"):
        made(path, f"teacher.routes.code.path={other}", f"output={tmp_path}/again")
    with pytest.raises(ConfigurationError, match="a model cannot learn from itself"):
        made(path, f"teacher.routes.other.path={tmp_path}/student", f"output={tmp_path}/again")


@pytest.mark.parametrize("weight", ["1.0", '"dynamic"'])
def test_experts_are_fused_into_the_teacher(tmp_path: Path, weight: str) -> None:
    path = write_run_file(tmp_path)
    tuned, base = third_model(tmp_path / "tuned", 5), third_model(tmp_path / "base", 6)
    expert = f'teacher.experts=[{{ path = "{tuned}", base = "{base}", weight = {weight} }}]'
    run = made(path, expert, "steps=2")
    assert len(run.models.teacher.members) == 3
    train(run, Observer())
    train(made(path, "steps=2", f"output={tmp_path}/plain"), Observer())
    assert metrics(tmp_path / "run")[0]["loss"] != metrics(tmp_path / "plain")[0]["loss"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["reference.reads=teacher"], r"there is a \[reference\], but the target Teacher\(\) compares with none"),
        (["target.name=self_past", "target.past_weight=0.5"], r"reference\.refresh_every is 0"),
        (["target.name=extrapolated", "reference={path='x', refresh_every=3}"], r"what is refreshed is a copy"),
        (["target.name=extrapolated", "reference.share=0.5"], r"reference\.refresh_every is 0, so the reference never"),
        ([*PAST, "reference.share=0"], r"reference\.share is 0; it should be greater than 0"),
        ([*PAST, "reference.share=1.5"], r"reference\.share is 1\.5; it should be less than or equal to 1"),
        ([*PAST, "reference.share=nan"], r"reference\.share"),
        (["target.name=bridge", "target.beta=0.5", "divergence.rest=truncated"], r"divergence\.rest is 'truncated'"),
        (["teacher.weight=0.5"], r"teacher\.weight is 0\.5, but there is nothing to weigh it against"),
        (["teacher.experts=[{path='x', weight='dynamic'}]"], r"teacher\.experts has a dynamic weight"),
        (["teacher.dynamic_weight_increment=3"], r"more than teacher\.largest_dynamic_weight = 2; nothing"),
        (["teacher.experts=[{path='nowhere/at/all'}]"], r"'nowhere/at/all' does not exist"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_is_refused(tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises((ConfigurationError, ValueError), match=message):
        made(write_run_file(tmp_path), *overrides)
    assert not (tmp_path / "run").exists()


def test_a_reference_with_another_tokenizer_is_refused(tmp_path: Path) -> None:
    path = write_run_file(tmp_path)
    other = save_model(tmp_path / "other", make_tokenizer(extra=("ab",)), padded_size=272, stop_ids=257, seed=1)
    with pytest.raises(ValueError, match="student and reference have different tokenizers"):
        made(path, "target.name=extrapolated", f"reference={other}")
