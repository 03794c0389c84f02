"""Training from Python: what comes back, live numbers, stopping, and refusals in one line."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

import tutelage
from tests.support.tiny_run import write_run_file
from tutelage.errors import ConfigurationError, DataError, OutputExistsError, RunInterrupted
from tutelage.report import read_jsonl

pytestmark = pytest.mark.runs

SHORT = {"rollout.max_new_tokens": 6, "evaluation.sets": [], "steps": 2}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    write_run_file(folder)
    return folder


@pytest.fixture(scope="module")
def run(home: Path) -> tutelage.SavedRun:
    overrides = {"rollout.max_new_tokens": 6, "steps": 2, "output": home / "whole", "evaluation.every": 1}
    return tutelage.train(home / "run.toml", overrides, progress=False)


def test_a_run_comes_back_with_its_numbers(run: tutelage.SavedRun, home: Path) -> None:
    assert run.folder == home / "whole" and run.is_finished
    assert list(run.metrics.index) == [0, 1]
    assert run.metrics["loss"].tolist() == [line["loss"] for line in read_jsonl(run.folder / "metrics.jsonl")]
    assert list(run.evaluations.index) == [0, 1, 2] and set(run.evaluations["name"]) == {"sums"}
    assert run.evaluations["pass_at_k.2"].between(0, 1).all()
    assert run.last_checkpoint == run.folder / "checkpoints/step-000002"
    assert run.best_checkpoint in (None, *run.checkpoints.values())
    assert (run.folder / "curves.png").is_file()
    assert run.config.steps == 2


def test_it_can_be_opened_again_and_reported(run: tutelage.SavedRun, tmp_path: Path) -> None:
    again = tutelage.open_run(str(run.folder))
    assert again == run
    report = again.report(tmp_path / "page.html")
    assert report.path.read_text().count("<html") == 1 and report.is_complete
    short = again.as_dict()
    assert (short["name"], short["steps"], short["num_steps"], short["is_finished"]) == ("tiny", 2, 2, True)
    assert short["metrics"] == run.metric_records[-1] and [each["step"] for each in short["evaluations"]] == [2]


def test_a_table_trains_as_the_file_that_it_would_be(home: Path, run: tutelage.SavedRun, tmp_path: Path) -> None:
    import tomllib

    table = tomllib.loads((home / "run.toml").read_text())
    before = repr(table)
    overrides = {**SHORT, "output": tmp_path / "run", "policy.kl_radius.start": 0.05}
    made = tutelage.train(table, overrides, progress=False)
    assert repr(table) == before
    losses = [line["loss"] for line in made.metric_records]
    assert losses == run.metrics["loss"].tolist()


def test_live_numbers_and_a_stop_that_saves(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[tuple[int, float]] = []

    def watch(step: int, metrics: Mapping[str, float]) -> bool:
        seen.append((step, metrics["loss"]))
        return step == 1

    overrides = {**SHORT, "steps": 4, "output": tmp_path / "run", "checkpoint.every": 100}
    run = tutelage.train(home / "run.toml", overrides, on_step=watch)
    assert seen == [(line["step"], line["loss"]) for line in run.metric_records] and len(seen) == 2
    assert not run.is_finished and run.last_checkpoint == run.folder / "checkpoints/step-000002"
    assert "step 2/4" in capsys.readouterr().out
    ended = tutelage.resume(run.folder, on_step=lambda step, _: step == 3, progress=False)
    assert ended.is_finished and capsys.readouterr().out == ""
    whole = tutelage.train(home / "run.toml", {**overrides, "output": tmp_path / "whole"}, progress=False)
    assert [line["loss"] for line in ended.metric_records] == [line["loss"] for line in whole.metric_records]


def test_a_callback_that_fails_loses_nothing(home: Path, tmp_path: Path) -> None:
    def fails(step: int, metrics: Mapping[str, float]) -> None:
        raise KeyError("no such metric")

    overrides = {**SHORT, "output": tmp_path / "run", "checkpoint.every": 100}
    with pytest.raises(KeyError, match="no such metric"):
        tutelage.train(home / "run.toml", overrides, on_step=fails, progress=False)
    assert tutelage.open_run(tmp_path / "run").last_checkpoint == tmp_path / "run/checkpoints/step-000001"


def test_ctrl_c_saves_and_gives_the_signals_back(home: Path, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    overrides = {**SHORT, "output": tmp_path / "run"}
    with pytest.raises(RunInterrupted, match="stopped by SIGINT after 1 of 2 steps; the run is saved in"):
        tutelage.train(
            home / "run.toml", overrides, on_step=lambda *_: signal.raise_signal(signal.SIGINT), progress=False
        )
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert tutelage.resume(tmp_path / "run", progress=False).is_finished


def test_a_thread_trains_and_leaves_signals_alone(home: Path, tmp_path: Path) -> None:
    handlers, runs = [], []

    def watch(step: int, metrics: Mapping[str, float]) -> None:
        handlers.append((signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)))

    def work() -> None:
        overrides = {**SHORT, "output": tmp_path / "run"}
        runs.append(tutelage.train(home / "run.toml", overrides, on_step=watch, progress=False))

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert runs[0].is_finished and handlers == [before, before]


def test_torch_has_its_threads_again(home: Path, tmp_path: Path) -> None:
    import torch

    before = torch.get_num_threads()
    inside: list[int] = []
    overrides = {**SHORT, "steps": 1, "output": tmp_path / "run", "runtime.threads": before + 1}
    tutelage.train(home / "run.toml", overrides, on_step=lambda *_: inside.append(torch.get_num_threads()) or None)
    assert (inside, torch.get_num_threads()) == ([before + 1], before)


def test_refusals_are_the_command_lines_own(home: Path, run: tutelage.SavedRun, tmp_path: Path) -> None:
    file = home / "run.toml"
    with pytest.raises(ConfigurationError, match=r"'policy\.kl_radus'. Did you mean policy\.kl_radius\?"):
        tutelage.train(file, {"policy.kl_radus": 0.1})
    with pytest.raises(ConfigurationError, match="run file 'nowhere.toml' does not exist"):
        tutelage.train("nowhere.toml")
    with pytest.raises(OutputExistsError, match="already exists, and a run never overwrites one"):
        tutelage.train(file, {"output": run.folder}, progress=False)
    with pytest.raises(ConfigurationError, match="steps is None of type NoneType; expected text, a number"):
        tutelage.train(file, {"steps": None})
    with pytest.raises(ConfigurationError, match="unknown configuration key 'studnet'. Did you mean student?"):
        tutelage.train({"studnet": "s", "teacher": "t", "data": "d.jsonl"})
    with pytest.raises(DataError, match=r"nothing-here does not exist; expected the folder of a run"):
        tutelage.open_run(tmp_path / "nothing-here")
    with pytest.raises(DataError, match="holds no run; expected the folder of a run"):
        tutelage.resume(tmp_path)


def test_a_finished_run_is_resumed_to_what_it_is(run: tutelage.SavedRun) -> None:
    before = run.as_dict()
    assert tutelage.resume(run.folder, progress=False).as_dict() == before
    with pytest.raises(ConfigurationError, match="steps is 1, but .* is at step 2 already"):
        tutelage.resume(run.folder, {"steps": 1}, progress=False)


def test_without_pandas_there_is_a_line_and_records(run: tutelage.SavedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ConfigurationError, match=r"a table of numbers was asked for. Install it with: pip install"):
        _ = run.metrics
    assert len(run.metric_records) == 2
