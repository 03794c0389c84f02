"""A checkpoint judged by itself, its answers read by a teacher, as the run that made it judged it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.tiny_run import write_prompts, write_run_file
from tutelage.api.evaluating import evaluate
from tutelage.config import build_run, load_config
from tutelage.errors import ConfigurationError
from tutelage.training import Observer, train

READ = ("reverse_kl", "teacher_logprob", "support_overlap", "student_entropy", "repeated_4grams")


@pytest.mark.runs
def test_a_teacher_reads_the_same_answers_as_during_the_run(tmp_path: Path) -> None:
    sums = write_prompts(tmp_path / "sums.jsonl", 3)
    overrides = ["steps=1", "policy=student", "evaluation.teacher_reads=true", f'evaluation.sets=["{sums}"]']
    path = write_run_file(tmp_path)
    train(build_run(load_config(path, overrides)), Observer())
    in_run = json.loads((tmp_path / "run/evaluations.jsonl").read_text().splitlines()[-1])
    model, options = tmp_path / "run/checkpoints/step-000001", {"samples": 2, "max_new_tokens": 10, "seed": 3}
    found = (
        evaluate(model, sums, run=path, progress=False, teacher=tmp_path / "teacher", **options).results[0].to_dict()
    )
    assert {name: found[name] for name in READ} == pytest.approx({name: in_run[name] for name in READ}, abs=1e-5)
    alone = evaluate(model, sums, run=path, progress=False, **options).results[0].to_dict()
    assert [name for name in READ if name in alone] == ["repeated_4grams"]


def test_a_model_is_no_teacher_of_itself(tmp_path: Path) -> None:
    sums, path = write_prompts(tmp_path / "sums.jsonl", 3), write_run_file(tmp_path)
    with pytest.raises(ConfigurationError, match="teacher and student are both"):
        evaluate(tmp_path / "student", sums, run=path, progress=False, teacher=tmp_path / "student")
