from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import shutil
import sqlite3
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from tests.support.tiny_run import write_run_file
from tutelage.config import build_run, load_config
from tutelage.errors import ConfigurationError
from tutelage.training import TRACKERS, Observer, RunFolder, RunLabel, Tracking, chosen_trackers, train
from tutelage.training.trackers import TrackedRun, evaluation_numbers
from tutelage.types import StepResult

EVALUATION = {
    "step": 4, "name": "sums", "pass_at_1": 0.5, "pass_at_k": {"1": 0.5, "2": 0.75}, "truncation_rate": 0.25,
    "mean_response_tokens": 9.0, "seconds": 1.0,
}  # fmt: skip


class Fake:
    """A library of its own name that writes down what it is asked for; `broken` names a call that fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, broken: str = "") -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.broken = broken
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, origin="here")
        for call in ("init", "log", "finish"):
            setattr(module, call, self._recorder(call, module))
        monkeypatch.setitem(sys.modules, name, module)

    def _recorder(self, call: str, answer: Any) -> Any:
        def record(*args: Any, **kwargs: Any) -> Any:
            self.calls.append((call, args, kwargs))
            if call == self.broken:
                raise ConnectionError("nobody answers\nat all")
            return answer  # wandb.init gives a run; this one is the module itself

        return record

    def named(self, call: str) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        return [(args, kwargs) for name, args, kwargs in self.calls if name == call]


class Listener(Observer):
    def __init__(self) -> None:
        self.messages: list[str] = []
        self.steps: list[int] = []

    def on_step(self, result: StepResult) -> None:
        self.steps.append(result.step)

    def on_message(self, message: str) -> None:
        self.messages.append(message)


def steps(tracking: Tracking, numbers: range) -> None:
    with tracking:
        tracking.on_start(numbers.start, 10)
        for step in numbers:
            tracking.on_step(StepResult(step, {"loss": 1.0 / (step + 1)}, []))


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_library_hears_of_a_run_and_of_its_continuation(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    fake, shown = Fake(monkeypatch, name), Listener()
    settings = {"policy.name": "student"}
    for numbers, is_resumed in ((range(3), False), (range(2, 4), True)):
        label = RunLabel("tiny", "mine", settings)
        made = Tracking(shown, RunFolder(tmp_path), chosen_trackers([name]), label, is_resumed)
        steps(made, numbers)
    assert fake.named("log") == [(({"loss": 1.0 / (k + 1)},), {"step": k}) for k in (0, 1, 2, 2, 3)]
    (_, first), (_, second) = fake.named("init")
    assert first == second and first["project"] == "mine" and first["config"] == settings and first["resume"] == "allow"
    identity = json.loads((tmp_path / "trackers.json").read_text())["id"]
    assert identity in (first.get("id", ""), first["name"].removeprefix("tiny-"))
    assert len(fake.named("finish")) == 2
    assert shown.steps == [0, 1, 2, 2, 3] and shown.messages == []


def test_a_moved_run_keeps_its_identity_and_a_copy_gets_its_own(tmp_path: Path) -> None:
    def identity(name: str) -> str:
        return TrackedRun(tmp_path / name, RunLabel("tiny"), 0, True).identity

    (tmp_path / "a").mkdir()
    first = identity("a")
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    second = identity("copy")
    assert second != first and identity("copy") == second and identity("a") == first
    (tmp_path / "a").rename(tmp_path / "moved")
    assert identity("moved") == first


@pytest.mark.parametrize(("error", "code"), [(None, 0), (KeyboardInterrupt, 1)])
def test_a_run_that_ends_early_is_told_apart(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: type[BaseException] | None, code: int
) -> None:
    fake = Fake(monkeypatch, "wandb")
    tracking = Tracking(Listener(), RunFolder(tmp_path), {"wandb": True}, RunLabel("tiny"))
    try:
        with tracking:
            tracking.on_start(0, 1)
            if error is not None:
                raise error
    except KeyboardInterrupt:
        pass
    assert fake.named("finish") == [((), {"exit_code": code})]


@pytest.mark.parametrize("name", ["wandb", "trackio"])
@pytest.mark.parametrize("broken", ["log", "finish"])
def test_a_tracker_that_fails_is_named_once_and_the_run_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, broken: str
) -> None:
    fake, shown = Fake(monkeypatch, name, broken), Listener()
    steps(Tracking(shown, RunFolder(tmp_path), {name: True}, RunLabel("tiny")), range(3))
    assert shown.steps == [0, 1, 2] and len(fake.named(broken)) == 1
    (message,) = shown.messages
    assert f"'{name}' failed (ConnectionError: nobody answers);" in message and "metrics.jsonl" in message


def test_a_tracker_that_cannot_start_ends_a_run_only_if_it_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Fake(monkeypatch, "wandb", "init")
    with pytest.raises(
        ConfigurationError, match=r"'wandb' cannot start: ConnectionError: nobody answers\. .*same command again"
    ):
        steps(Tracking(Listener(), RunFolder(tmp_path), {"wandb": True}, RunLabel("tiny")), range(3))
    shown = Listener()
    steps(Tracking(shown, RunFolder(tmp_path), {"wandb": False}, RunLabel("tiny")), range(3))
    assert shown.steps == [0, 1, 2] and len(shown.messages) == 1


def test_what_is_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    for name, tracker in TRACKERS.items():
        monkeypatch.delitem(sys.modules, tracker.package, raising=False)
        if name != "wandb":
            (tmp_path / tracker.package).mkdir()
            (tmp_path / tracker.package / "__init__.py").write_text("raise AssertionError('to be chosen is enough')")
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    assert chosen_trackers(["auto"]) == {"tensorboard": False}
    assert chosen_trackers(["auto", "tensorboard", "trackio"]) == {"tensorboard": True, "trackio": True}
    assert chosen_trackers([]) == {}
    with pytest.raises(ConfigurationError, match=r"'wandb', but its library.*pip install 'tutelage\[wandb\]'"):
        chosen_trackers(["wandb"])
    with pytest.raises(ConfigurationError, match="'tensorbord'; expected auto, tensorboard, wandb, trackio"):
        chosen_trackers(["tensorbord"])
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert chosen_trackers(["auto"]) == {}


def test_a_folder_called_like_a_library_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "trackio").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "trackio", raising=False)
    with pytest.raises(ConfigurationError, match="'trackio', but its library is not installed"):
        chosen_trackers(["trackio"])


def test_a_missing_library_is_refused_before_a_folder_is_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(ConfigurationError, match="library is not installed"):
        build_run(load_config(write_run_file(tmp_path), ["logging.trackers=['trackio']"]))
    assert not (tmp_path / "run").exists()


def test_evaluations_have_the_name_of_their_set() -> None:
    assert evaluation_numbers(EVALUATION) == {
        "sums/pass_at_1": 0.5,
        "sums/pass_at_2": 0.75,
        "sums/truncation_rate": 0.25,
        "sums/mean_response_tokens": 9.0,
    }


@pytest.mark.runs
def test_a_whole_run_says_the_same_to_a_tracker_as_to_its_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = Fake(monkeypatch, "wandb")
    overrides = ["steps=2", "logging.trackers=['wandb']", "data.verifier=exact", "logging.diagnostics_every=2"]
    train(build_run(load_config(write_run_file(tmp_path), overrides)), Observer())
    told = [(kwargs["step"], numbers) for (numbers,), kwargs in fake.named("log")]
    folder = RunFolder(tmp_path / "run")
    records = folder.read("metrics.jsonl")
    metrics = [(record.pop("step"), record) for record in records]
    evaluations = [(record["step"], evaluation_numbers(record)) for record in folder.read("evaluations.jsonl")]
    assert [each for each in told if "loss" in each[1]] == metrics
    assert [each for each in told if "loss" not in each[1]] == evaluations
    assert [step for step, _ in told] == sorted(step for step, _ in told)
    assert "longest_repeat" in metrics[0][1] and "longest_repeat" not in metrics[1][1]
    assert fake.named("init")[0][1]["config"]["policy.name"] == "trust_region"


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
@pytest.mark.filterwarnings("ignore")
def test_tensorboard_shows_a_resumed_run_once(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = RunFolder(tmp_path)
    first = Tracking(Listener(), folder, {"tensorboard": True}, RunLabel("tiny"))
    with first:
        first.on_start(0, 10)
        for tracker in first.trackers.values():
            tracker.log(4, evaluation_numbers(EVALUATION))
        for step in range(7):
            first.on_step(StepResult(step, {"loss": 1.0 + step}, []))
    folder.append("evaluations.jsonl", [EVALUATION])
    steps(Tracking(Listener(), folder, {"tensorboard": True}, name="tiny", is_resumed=True), range(4, 9))
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(9))
    assert events.Scalars("loss")[2].value == 3.0
    assert [(event.step, event.value) for event in events.Scalars("sums/pass_at_1")] == [(4, 0.5)]


def _told_in_two_parts(tmp_path: Path, name: str) -> str:
    """A run of seven steps that is resumed at step 4 and goes on to the ninth; returns its id."""
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    steps(Tracking(Listener(), folder, {name: True}, name="tiny", project="sums"), range(7))
    listener = Listener()
    steps(Tracking(listener, folder, {name: True}, name="tiny", project="sums", is_resumed=True), range(4, 9))
    assert listener.messages == []
    return str(json.loads((folder.path / "trackers.json").read_text())["id"])


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
@pytest.mark.filterwarnings("ignore")
def test_the_real_wandb_keeps_one_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    identity = _told_in_two_parts(tmp_path, "wandb")
    written = list((tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert {path.name for path in written} == {f"run-{identity}.wandb"}
    assert all(b"loss" in path.read_bytes() for path in written)


@pytest.mark.skipif(importlib.util.find_spec("trackio") is None, reason="trackio is not installed")
@pytest.mark.filterwarnings("ignore")
def test_the_real_trackio_keeps_one_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    identity = _told_in_two_parts(tmp_path, "trackio")
    with sqlite3.connect(tmp_path / "trackio" / "sums.db") as database:
        rows = database.execute("select run_name, step, metrics from metrics order by step, id").fetchall()
    assert {run for run, _, _ in rows} == {f"tiny-{identity}"}
    # What is written again after a resume is there twice, and the same.
    assert [step for _, step, _ in rows] == [0, 1, 2, 3, 4, 4, 5, 5, 6, 6, 7, 8]
    assert {json.loads(metrics)["loss"] for _, step, metrics in rows if step == 4} == {0.2}
