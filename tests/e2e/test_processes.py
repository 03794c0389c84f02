"""Several processes: the same run as one process makes, whatever is shared, and an end when one of them is gone."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.fake_server import student_server
from tests.support.tiny_run import write_run_file
from tests.support.two_ranks import build, in_float64
from tutelage.models import LanguageModel
from tutelage.runtime import Learner, LocalRuntime
from tutelage.training import Observer, train

ROOT = Path(__file__).parents[2]
FLOAT64 = '[student]\npath = "STUDENT"\ndtype = "float64"\n[teacher]\npath = "TEACHER"\ndtype = "float64"\n'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run file in float64, in which the order of additions is all that may differ."""
    folder = tmp_path_factory.mktemp("processes")
    text = write_run_file(folder).read_text()
    student, teacher = folder / "student", folder / "teacher"
    kept = [line for line in text.splitlines() if not line.startswith(("student =", "teacher ="))]
    models = FLOAT64.replace("STUDENT", str(student)).replace("TEACHER", str(teacher))
    (folder / "run.toml").write_text("\n".join(kept) + "\n" + models)
    return folder


@pytest.fixture(scope="module")
def ended(folder: Path) -> Iterator[dict[str, subprocess.CompletedProcess[str]]]:
    """All processes of `two_ranks` by name, beside the same runs made by one."""
    server = student_server(in_float64)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    ports = [str(free_port()) for _ in range(3)]
    command = [sys.executable, "-m", "tests.support.two_ranks", str(folder), *ports]
    started = subprocess.Popen(command, env=environment, cwd=ROOT, start_new_session=True)
    try:
        os.environ["STUDENT_SERVER"] = server.url
        for name in ("ddp", "fsdp2", "uneven", "rated", "followed", "served", "resumed"):
            output, here = f"output={folder / 'alone' / name}", "runtime.strategy=ddp"
            run = build(folder, name, output, here, processes=None)
            if name == "fsdp2":
                run.source = replace(run.source, runtime=ModulesForward("cpu"))
            train(run, Observer())
        assert started.wait(timeout=240) == 0
        codes = json.loads((folder / "exit-codes.json").read_text())
        yield {
            name: subprocess.CompletedProcess(name, code, (folder / f"{name}.out").read_text(errors="replace"))
            for name, code in codes.items()
        }
    finally:
        server.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)


class ModulesForward(LocalRuntime):
    """Learns as a sharded student does: through the module's own forward."""

    def learner(self, student: LanguageModel) -> Learner:
        return Learner(replace(student, fast_forward=False))


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def lines(folder: Path, name: str = "metrics.jsonl") -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def compare(shared: Path, alone: Path, tolerance: float) -> None:
    """The same tokens; losses, weights and moments to a tolerance."""
    assert [r["response"] for r in lines(shared, "samples.jsonl")] == [
        r["response"] for r in lines(alone, "samples.jsonl")
    ]
    metrics, expected = lines(shared), lines(alone)
    assert len(metrics) == len(expected)
    for ours, theirs in zip(metrics, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ("loss", "grad_norm", "teacher_logprob", "student_entropy", "reward", "response_tokens_total"):
            assert ours[name] == pytest.approx(
                theirs[name], rel=0, abs=10 * tolerance if name == "grad_norm" else tolerance
            ), name
    last = json.loads((alone / "checkpoints" / "index.json").read_text())["last"]
    ours, theirs = (load_file(run / "checkpoints" / last / "model.safetensors") for run in (shared, alone))
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, rtol=0, atol=tolerance)
    ours, theirs = (
        torch.load(run / "checkpoints" / last / "optimizer.pt", weights_only=True) for run in (shared, alone)
    )
    assert ours["param_groups"] == theirs["param_groups"]
    assert ours["state"].keys() == theirs["state"].keys()
    for place, moments in theirs["state"].items():
        for name, moment in moments.items():
            torch.testing.assert_close(ours["state"][place][name], moment, rtol=0, atol=tolerance)


# What is sharded goes through the module's own forward. It and ours differ by the rounding of float32, in which norms
# are computed whatever the model's type.
@pytest.mark.parametrize(
    ("name", "alone", "tolerance"),
    [
        ("ddp", "ddp", 1e-9),
        ("fsdp2", "fsdp2", 1e-9),
        ("fsdp2", "ddp", 1e-7),
        ("uneven", "uneven", 1e-9),
        ("uneven-sharded", "uneven", 1e-7),
        ("rated", "rated", 1e-9),
        ("followed", "followed", 1e-9),
        ("followed-sharded", "followed", 1e-7),
        ("served", "served", 1e-9),
    ],
)
def test_two_processes_equal_one(ended, folder: Path, name: str, alone: str, tolerance: float) -> None:
    """Also with 3 prompts for 2 processes, and with 1, where a process has none; weights decided over all tokens.

    "served": steps 0 to 3 are paired, 4 and 5 and the evaluations are drawn by one server that all processes ask.
    """
    compare(folder / name, folder / "alone" / alone, tolerance)
    ours, theirs = (lines(run, "evaluations.jsonl") for run in (folder / name, folder / "alone" / alone))
    assert [{**r, "seconds": 0} for r in ours] == [{**r, "seconds": 0} for r in theirs]


def test_rewards_and_what_is_learned_from_them_are_those_of_one_process(ended, folder: Path) -> None:
    """3 prompts for 2 processes, each of which judges its share; groups and multipliers are of the whole batch."""
    ours, theirs = (lines(run) for run in (folder / "rated", folder / "alone" / "rated"))
    for here, there in zip(ours, theirs, strict=True):
        rated = {name: value for name, value in there.items() if "reward" in name or name == "correct"}
        assert len(rated) == 11 and {name: here[name] for name in rated} == rated
        families = (
            "clip_share_",
            "ratio_",
            "sequence_ratio_",
            "correction_",
            "advantage_",
            "group_share_",
            "zero_spread_",
        )
        reported = {name: value for name, value in there.items() if name.startswith(families)}
        assert len(reported) >= 14 and {name: here[name] for name in reported} == pytest.approx(reported, abs=1e-6)
    one, other = (
        (run / "checkpoints/step-000004/trainer.json").read_text()
        for run in (folder / "rated", folder / "alone" / "rated")
    )
    assert one == other and '"u"' in one


@pytest.mark.parametrize("name", ["followed", "followed-sharded"])
def test_gradients_of_single_rewards_are_those_of_one_process(ended, folder: Path, name: str) -> None:
    for here, there in zip(lines(folder / name), lines(folder / "alone" / "followed"), strict=True):
        followed = {key: value for key, value in there.items() if key.startswith(("reward_gradient", "reward_mult"))}
        assert {key: here[key] for key in followed} == pytest.approx(followed, rel=1e-5)
        assert len(followed) == (5 if there["step"] % 2 == 0 else 2) and followed["reward_multiplier/tokens"] >= 1


def test_a_run_may_go_on_with_other_processes(ended, folder: Path) -> None:
    """Two steps on two processes, two on one, and two on two that share the weights."""
    compare(folder / "resumed", folder / "alone" / "resumed", 1e-7)


def test_a_nan_ends_all_with_the_same_words(ended, folder: Path) -> None:
    first, second = ((folder / f"nan.{rank}.txt").read_text() for rank in range(2))
    assert first == second and first.startswith("NonFiniteError: step 0: the loss is nan")


def test_what_one_cannot_do_ends_all_with_its_words(ended, folder: Path) -> None:
    assert [(folder / f"failed.{rank}.txt").read_text() for rank in range(2)] == ["DataError: no such prompt"] * 2


def test_different_run_files_are_refused(ended, folder: Path) -> None:
    first, second = ((folder / f"different.{rank}.txt").read_text() for rank in range(2))
    assert first == second and "the run file: rank 1 has something else than rank 0" in first
    assert not (folder / "different").exists()


@pytest.mark.parametrize(
    ("name", "what"),
    [("other-prompts", "the prompts that data.path gives"), ("other-judged", "the problems that evaluation.sets give")],
)
def test_different_data_are_refused_everywhere(ended, folder: Path, name: str, what: str) -> None:
    first, second = ((folder / f"{name}.{rank}.txt").read_text() for rank in range(2))
    assert first == second and f"{what}: rank 1 has something else than rank 0" in first
    assert not (folder / name).exists()


def test_a_signal_to_one_stops_all_at_the_same_step(ended, folder: Path) -> None:
    first, second = ((folder / f"asked.{rank}.txt").read_text() for rank in range(2))
    assert first == second and first.startswith("RunInterrupted: stopped by SIGTERM after 2 of 6 steps")
    assert (folder / "asked" / "checkpoints" / "step-000002").is_dir()


def test_a_killed_process_ends_the_run_and_loses_nothing(ended, folder: Path) -> None:
    first, second = ended["rank-0"], ended["rank-1"]
    assert second.returncode == -9, second.stdout
    assert first.returncode == 2
    assert "WorkerLostError: rank 1 of 2 has given no sign of life for 6 seconds" in first.stdout
    goes_on_alone(folder, "killed")


def test_two_nodes_meet_and_end_together(ended, folder: Path) -> None:
    """torchrun on two "nodes" of this machine, of which one loses its process."""
    nodes = [ended[f"node-{number}"] for number in range(2)]
    assert all(node.returncode for node in nodes)
    said = "".join(node.stdout for node in nodes)
    assert "WorkerLostError: rank 1 of 2 has given no sign of life" in said
    goes_on_alone(folder, "nodes")


def goes_on_alone(folder: Path, name: str) -> None:
    """From the checkpoint before the kill, to what an undisturbed run comes to."""
    assert json.loads((folder / name / "checkpoints" / "index.json").read_text())["last"] == "step-000002"
    train(build(folder, name, processes=None, resume=True), Observer())
    compare(folder / name, folder / "alone" / "resumed", 1e-9)
