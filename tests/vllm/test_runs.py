"""Whole runs with a real vLLM: the warm-up is paired, the rest is not; a teacher server dies, the run goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.vllm.conftest import Service
from tutelage.config import build_run, load_config
from tutelage.demo import problem_lines, student_path, teacher_path
from tutelage.errors import ServerError
from tutelage.training import Observer, TrainerState, train
from tutelage.types import StepResult

HEAD = f"""
seed = 3
student = "{student_path()}"
[teacher]
path = "{teacher_path()}"
"""
REST = """
[rollout]
prompts_per_step = 4
samples_per_prompt = 2
max_new_tokens = 40
ENGINE
[optimizer]
learning_rate = 1e-3
warmup_steps = 1
[checkpoint]
every = 100
[runtime]
device = "cpu"
threads = 1
[logging]
trackers = []
[vllm]
dtype = "float32"
memory_share = 0.2
tolerance = 1e-4
tolerance_max = 1e-3
"""


def write(folder: Path, teacher: str, axis: str, engine: str, steps: int) -> Path:
    (folder / "prompts.jsonl").write_text(problem_lines(16, 5))
    places = f'output = "{folder / "run"}"\ndata = "{folder / "prompts.jsonl"}"\n'
    path = folder / "run.toml"
    path.write_text(f"steps = {steps}\n{places}{axis}\n{HEAD}{teacher}{REST.replace('ENGINE', engine)}")
    return path


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


def test_the_warm_up_is_paired_and_the_rest_is_vllms(tmp_path: Path) -> None:
    policy = (
        'policy = { name = "trust_region", kl_radius = { schedule = "linear", start = 0.05, stop = 0.0, steps = 2 } }'
    )
    train(build_run(load_config(write(tmp_path, "", policy, 'engine = "vllm"', steps=5))), Observer())
    steps = metrics(tmp_path)
    for record in steps:
        names = ("blend_mean", "kl_radius", "vllm_logprob_mismatch", "vllm_logprob_mismatch_max", "loss")
        print({"step": record["step"]} | {name: record[name] for name in names if name in record})
    assert ["blend_mean" in record for record in steps] == [True, True, False, False, False]
    assert ["vllm_logprob_mismatch" in record for record in steps] == [False, False, True, True, True]
    assert all(record["vllm_logprob_mismatch_max"] < 1e-4 for record in steps[2:])
    assert all(record["sampled_reverse_kl"] is not None for record in steps)
    assert len({record["loss"] for record in steps}) == 5


@pytest.fixture(scope="module")
def teacher(serve: Callable[..., Service]) -> Service:
    return serve(teacher_path())


class KillsAfter(Observer):
    """Kills a server once a step is done."""

    def __init__(self, service: Service, step: int) -> None:
        self.service, self.step = service, step

    def on_step(self, result: StepResult) -> None:
        if result.step == self.step:
            self.service.kill()


def test_a_run_survives_the_death_of_its_teacher_server(
    teacher: Service, serve: Callable[..., Service], tmp_path: Path
) -> None:
    """No teacher is loaded; the server is killed after step 1, the run ends saved, and resumes to the same numbers."""
    divergence = 'divergence = { name = "reverse_kl", support = "teacher_top_k", top_k = 8 }'

    def file(name: str) -> Path:
        (tmp_path / name).mkdir()
        options = f'server = "{teacher.url}"\nretries = 2\n'
        return write(tmp_path / name, options, divergence, "", steps=4)

    undisturbed = build_run(load_config(file("undisturbed")))
    assert undisturbed.models.teachers == {}
    train(undisturbed, Observer())
    disturbed = file("disturbed")
    with pytest.raises(
        ServerError, match=r"asked 3 times.*This was after 2 of 4 steps; the run is saved in .*--resume"
    ):
        train(build_run(load_config(disturbed)), KillsAfter(teacher, 1))
    assert len(metrics(tmp_path / "disturbed")) == 2
    serve(teacher_path(), port=teacher.port)
    state: TrainerState = train(build_run(load_config(disturbed), resume=True), Observer())
    assert state.step == 4
    for one, other in zip(metrics(tmp_path / "undisturbed"), metrics(tmp_path / "disturbed"), strict=True):
        print({name: (one[name], other[name]) for name in ("step", "loss", "teacher_logprob")})
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)
