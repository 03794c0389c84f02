"""Whole runs on the tiny pair: what is learned, which files remain, and what survives."""

from __future__ import annotations

import errno
import json
import os
import signal
from pathlib import Path

import pytest
import torch
import transformers

from tests.support.tiny_run import write_run_file
from tutelage.config import build_run, load_config
from tutelage.errors import CheckpointError, ConfigurationError, NonFiniteError, RunInterrupted
from tutelage.runtime import LocalRuntime
from tutelage.training import Observer, train
from tutelage.types import StepResult


def run(path: Path, *overrides: str, resume: bool = False, observer: Observer | None = None):
    made = build_run(load_config(path, overrides), resume=resume)
    train(made, observer or Observer())
    return made


def lines(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def without_times(records: list[dict]) -> list[dict]:
    return [{k: v for k, v in r.items() if "second" not in k} for r in records]


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run of six steps."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run(write_run_file(folder))
    return folder / "run"


class StopAt(Observer):
    """Sends a signal to this process when a step is reported."""

    def __init__(self, step: int, number: int = signal.SIGTERM) -> None:
        self.step, self.number = step, number

    def on_step(self, result: StepResult) -> None:
        if result.step == self.step:
            os.kill(os.getpid(), self.number)


def test_a_run_leaves_its_files(finished: Path) -> None:
    metrics = lines(finished, "metrics.jsonl")
    assert [record["step"] for record in metrics] == list(range(6))
    always = [
        "loss",
        "teacher_logprob",
        "student_logprob",
        "teacher_entropy",
        "student_entropy",
        "support_overlap",
        "support_mass_student",
        "support_mass_teacher",
        "reward",
        "response_tokens",
        "truncated_share",
        "stopped_share",
        "grad_norm",
        "learning_rate",
        "seconds_rollout",
        "seconds_score",
        "seconds_verify",
        "seconds_update",
        "seconds",
        "tokens_per_second",
        "logprob_mismatch",
    ]
    for record in metrics:
        assert set(always) <= set(record)
        assert record["logprob_mismatch"] < 1e-4
    warm, plain = metrics[:4], metrics[4:]
    assert [record["kl_radius"] for record in warm] == pytest.approx([0.05, 0.0375, 0.025, 0.0125])
    assert all(record["kl_used"] <= record["kl_radius"] * 1.001 for record in warm)
    assert all({"blend_mean", "blend_share_zero", "blend_share_one", "kl_used_share"} <= set(record) for record in warm)
    assert all("blend_mean" not in record for record in plain)
    evaluations = lines(finished, "evaluations.jsonl")
    assert [record["step"] for record in evaluations] == [0, 3, 6]
    assert len(lines(finished / "evaluations", "step-000003-sums.jsonl")) == 6
    samples = lines(finished, "samples.jsonl")
    assert len(samples) == 24 and {"prompt", "response", "answer", "correct", "teacher_logprob"} <= set(samples[0])
    assert samples[0]["prompt"].startswith("user\nWhat is")
    assert load_config(finished / "config.toml").steps == 6


def test_the_saved_student_opens_and_generates(finished: Path) -> None:
    folder = finished / "checkpoints" / "step-000006"
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is 1 + 2?"}], add_generation_prompt=True, return_dict=False
    )
    answer = model.generate(torch.tensor([prompt]), max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert answer.shape[1] > len(prompt)
    assert model.generation_config.eos_token_id == [256, 258], "it stops wherever it was trained to"


def test_the_same_run_twice_gives_the_same_bytes(finished: Path, tmp_path: Path) -> None:
    run(write_run_file(tmp_path))
    again = tmp_path / "run"
    assert weights(again / "checkpoints/step-000006") == weights(finished / "checkpoints/step-000006")
    assert without_times(lines(again, "metrics.jsonl")) == without_times(lines(finished, "metrics.jsonl"))


def test_evaluating_more_often_does_not_change_training(finished: Path, tmp_path: Path) -> None:
    run(write_run_file(tmp_path), "evaluation.every=1", "evaluation.num_samples=3")
    assert weights(tmp_path / "run/checkpoints/step-000006") == weights(finished / "checkpoints/step-000006")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_three_steps_and_three_more_equal_six(finished: Path, tmp_path: Path, number: int) -> None:
    path = write_run_file(tmp_path)
    with pytest.raises(RunInterrupted, match=r"after 3 of 6 steps.*--resume"):
        run(path, observer=StopAt(2, number))
    assert len(lines(tmp_path / "run", "metrics.jsonl")) == 3
    run(path, resume=True)
    compare(tmp_path / "run", finished)


def test_an_interrupt_in_the_middle_of_a_rollout_saves_the_step_before(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tutelage.rollout.decoding.decoder import Decoder

    path, calls, read = write_run_file(tmp_path), [], Decoder.read

    def interrupted_read(*arguments, **settings):
        calls.append(None)
        if len(calls) == 75:
            os.kill(os.getpid(), signal.SIGTERM)
        return read(*arguments, **settings)

    monkeypatch.setattr(Decoder, "read", interrupted_read)
    with pytest.raises(RunInterrupted, match="the run is saved"):
        run(path)
    monkeypatch.undo()
    run(path, resume=True)
    compare(tmp_path / "run", finished)


def test_an_interrupt_in_the_middle_of_an_update_saves_the_step_after(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that have moved and a step that has not would resume to other bytes."""
    path, updates, update = write_run_file(tmp_path), [], LocalRuntime.update

    def interrupted_update(*arguments):
        updates.append(None)
        if len(updates) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return update(*arguments)

    monkeypatch.setattr(LocalRuntime, "update", interrupted_update)
    with pytest.raises(RunInterrupted, match="after 3 of 6 steps"):
        run(path)
    monkeypatch.undo()
    run(path, resume=True)
    compare(tmp_path / "run", finished)


def compare(resumed: Path, undisturbed: Path) -> None:
    last = "checkpoints/step-000006"
    assert weights(resumed / last) == weights(undisturbed / last)
    assert without_times(lines(resumed, "metrics.jsonl")) == without_times(lines(undisturbed, "metrics.jsonl"))
    assert without_times(lines(resumed, "evaluations.jsonl")) == without_times(lines(undisturbed, "evaluations.jsonl"))
    assert lines(resumed, "samples.jsonl") == lines(undisturbed, "samples.jsonl")
    states = [
        torch.load(folder / last / "optimizer.pt", weights_only=True)["state"] for folder in (resumed, undisturbed)
    ]
    for mine, theirs in zip(*(list(state.values()) for state in states), strict=True):
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_a_damaged_checkpoint_is_passed_over_aloud(finished: Path, tmp_path: Path) -> None:
    path = write_run_file(tmp_path)
    with pytest.raises(RunInterrupted):
        run(path, observer=StopAt(4))
    folder = tmp_path / "run/checkpoints"
    newest = sorted(folder.glob("step-*"))[-1]
    content = bytearray(weights(newest))
    content[len(content) // 2] ^= 1
    (newest / "model.safetensors").write_bytes(content)
    made = build_run(load_config(path), resume=True)
    assert made.messages == [
        "checkpoint step-000005 is damaged (model.safetensors is not what was written); falling back to step-000004"
    ]
    train(made, Observer())
    compare(tmp_path / "run", finished)


def test_a_run_killed_before_its_first_checkpoint_starts_again_in_its_folder(finished: Path, tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    class KillAt(Observer):
        def on_step(self, result: StepResult) -> None:
            raise Killed  # nothing is saved, as after SIGKILL

    path = write_run_file(tmp_path)
    with pytest.raises(Killed):
        run(path, observer=KillAt())
    assert not (tmp_path / "run/checkpoints").exists()
    made = build_run(load_config(path), resume=True)
    assert made.messages == ["no checkpoint was written yet; starting again at step 0"]
    train(made, Observer())
    compare(tmp_path / "run", finished)


def test_no_usable_checkpoint_is_an_error(tmp_path: Path) -> None:
    path = write_run_file(tmp_path)
    with pytest.raises(RunInterrupted):
        run(path, observer=StopAt(0))
    for manifest in (tmp_path / "run/checkpoints").glob("step-*/manifest.json"):
        manifest.unlink()
    with pytest.raises(CheckpointError, match=r"no usable checkpoint.*step-000001 is damaged"):
        build_run(load_config(path), resume=True)


def test_a_full_disk_leaves_the_previous_checkpoint(finished: Path, tmp_path: Path, monkeypatch) -> None:
    from tutelage.training import checkpoint

    path, save = write_run_file(tmp_path), torch.save

    def full(content, place, *arguments):
        if "step-000004" in str(place):
            place.write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(content, place, *arguments)

    monkeypatch.setattr(checkpoint.torch, "save", full)
    with pytest.raises(CheckpointError, match=r"step 4 could not be written.*No space left on device.*untouched"):
        run(path)
    folder = tmp_path / "run/checkpoints"
    assert sorted(item.name for item in folder.iterdir() if item.is_dir()) == ["step-000002"]
    monkeypatch.undo()
    run(path, resume=True)
    compare(tmp_path / "run", finished)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_nan_stops_the_run_and_names_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    from tutelage.training import objective

    path, calls = write_run_file(tmp_path), []
    chunked = objective.chunked

    def poisoned(*arguments, **settings):
        calls.append(None)
        values, logprobs = chunked(*arguments, **settings)
        if len(calls) == 4:
            if where == "loss":
                values = values * float("nan")
            else:
                values.register_hook(lambda gradient: gradient * float("nan"))
        return values, logprobs

    monkeypatch.setattr(objective, "chunked", poisoned)
    with pytest.raises(NonFiniteError, match=rf"step 3: the {where}.*checkpoint of step 2 stays"):
        run(path)
    assert len(lines(tmp_path / "run", "metrics.jsonl")) == 3
    assert [item.name for item in (tmp_path / "run/checkpoints").glob("step-*")] == ["step-000002"]


def test_best_and_last_are_kept(tmp_path: Path) -> None:
    path = write_run_file(tmp_path)
    run(path, "steps=8", "checkpoint.every=1", "checkpoint.keep_last=2", "evaluation.every=1")
    folder = tmp_path / "run/checkpoints"
    evaluations = {r["step"]: r["pass_at_1"] for r in lines(tmp_path / "run", "evaluations.jsonl")}
    best_step = max(evaluations, key=lambda step: (evaluations[step], -step))
    index = json.loads((folder / "index.json").read_text())
    expected = {"step-000007", "step-000008"} | ({f"step-{best_step:06d}"} if best_step > 0 else set())
    assert {item.name for item in folder.glob("step-*")} == expected
    assert index["last"] == "step-000008"
    if best_step > 0:
        assert (index["best"], index["best_value"]) == (f"step-{best_step:06d}", evaluations[best_step])


def test_radius_zero_is_plain_distillation(tmp_path: Path) -> None:
    """Same seed, a trust region of radius 0 against the student policy: the same bytes, and no teacher in the loop."""
    for name, policy in (("zero", "policy.kl_radius=0.0"), ("opd", "policy=student")):
        (tmp_path / name).mkdir()
        run(write_run_file(tmp_path / name), policy, "steps=2")
    first, second = (weights(tmp_path / name / "run/checkpoints/step-000002") for name in ("zero", "opd"))
    assert first == second


def test_greedy_answers_are_judged_beside_the_sampled_ones(tmp_path: Path) -> None:
    path = write_run_file(tmp_path)
    run(path, "steps=1", "evaluation.greedy=true", f"output={tmp_path / 'both'}")
    run(path, "steps=1", f"output={tmp_path / 'sampled'}")
    both, sampled = (without_times(lines(tmp_path / name, "evaluations.jsonl")) for name in ("both", "sampled"))
    assert [record["name"] for record in both] == ["sums-greedy", "sums"] * 2
    assert both[1::2] == sampled, "one more look changes nothing else"
    assert [(record["temperature"], record["num_samples"]) for record in both[::2]] == [(0.0, 1)] * 2
    first, last = (lines(tmp_path / "both" / "evaluations", f"step-00000{step}-sums-greedy.jsonl") for step in (0, 1))
    assert len(first) == len(last) == 3
    with pytest.raises(ConfigurationError, match="'sums' and 'sums-greedy'"):
        prompts = tmp_path / "prompts.jsonl"
        sets = ", ".join(f'{{path="{prompts}", name="{name}"}}' for name in ("sums", "sums-greedy"))
        run(path, "evaluation.greedy=true", f"evaluation.sets=[{sets}]", f"output={tmp_path / 'no'}")
