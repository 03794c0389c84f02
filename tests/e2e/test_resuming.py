"""A resumed run is the same run, or is refused: where it lies, who writes there, and what it reads."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.changed_inputs import CHANGES
from tests.support.commands import command, exit_code
from tests.support.quick_run import QUICK, StopAt
from tests.support.tiny_run import write_run_file
from tutelage.config import build_run, fingerprints, load_config
from tutelage.errors import CheckpointError, ConfigurationError, DataError, OutputExistsError, RunInterrupted
from tutelage.training import Observer, Run, evaluating, train

SETS = 'evaluation.sets=[{path="prompts.jsonl", name="sums", limit=3}]'


def resumed(file: str, *overrides: str, accept: tuple[str, ...] = ()) -> Run:
    return build_run(load_config(file, overrides), resume=True, accept=accept)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models, prompts and the folder "run" of a run that was stopped after its first step."""
    folder = tmp_path_factory.mktemp("begun")
    path = write_run_file(folder)
    path.write_text(path.read_text().replace(f"{folder}/", ""))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with pytest.raises(RunInterrupted):
            train(build_run(load_config("run.toml", [*QUICK, SETS, "evaluation.num_samples=1", "steps=2"])), StopAt(0))
    return folder


@pytest.fixture
def here(begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, in which the test works."""
    place = shutil.copytree(begun, tmp_path / "here")
    monkeypatch.chdir(place)
    return place


@pytest.mark.parametrize("name", CHANGES)
def test_what_changed_since_the_start_is_refused_by_name(here: Path, name: str) -> None:
    change, expected = CHANGES[name]
    if expected == {"evaluation"}:  # of the same name, and from a file of its own
        shutil.copy("prompts.jsonl", "judged.jsonl")
    overrides = [SETS.replace("prompts", "judged")] if expected == {"evaluation"} else []
    before = content(here / "run")
    change(here)
    with pytest.raises(ConfigurationError) as refused:
        resumed("run/config.toml", *overrides)
    message = str(refused.value)
    assert message.startswith("--resume: changed since it began: ")
    assert message.partition("To go on all the same: --resume ")[2] == " ".join(
        f"--accept {each}" for each in sorted(expected)
    )
    assert content(here / "run") == {**before, ".lock": b""}

    run = resumed("run/config.toml", *overrides, accept=tuple(expected))
    train(run, Observer())
    assert any(line.startswith("accepted, and noted in run/fingerprints.json: ") for line in run.messages)
    (noted,) = json.loads(Path("run/fingerprints.json").read_text())["accepted"]
    assert noted["step"] == 1 and {line.partition(" ")[0].partition(".")[0] for line in noted["changes"]} == expected
    assert not resumed("run/config.toml", *overrides).messages, "what was accepted is the run's from then on"


def test_another_version_of_a_library_is_refused_by_name(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = fingerprints.library_versions()
    monkeypatch.setattr(fingerprints, "library_versions", lambda: {**versions, "torch": "99.0"})
    with pytest.raises(
        ConfigurationError, match=rf"versions\.torch is '99\.0', was '{versions['torch'][:4]}.*versions$"
    ):
        resumed("run/config.toml")
    assert resumed("run/config.toml", accept=("versions",)).start.checkpoint is not None


def test_what_may_change_must_have_a_name_and_a_resumed_run(here: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"--accept names 'weights'; expected one of prompts, .*, versions"):
        resumed("run/config.toml", accept=("weights",))
    with pytest.raises(ConfigurationError, match="Add --resume"):
        build_run(load_config("run.toml"), accept=("versions",))


def test_a_run_from_before_fingerprints_is_resumed_with_a_warning(here: Path) -> None:
    Path("run/fingerprints.json").unlink()
    run = resumed("run/config.toml")
    assert "no fingerprints.json" in run.messages[0]
    train(run, Observer())
    assert resumed("run/config.toml").messages == []


def test_fingerprints_that_cannot_be_read_are_an_error(here: Path) -> None:
    Path("run/fingerprints.json").write_text('{"inputs"')
    with pytest.raises(CheckpointError, match=r"run/fingerprints\.json cannot be read .* delete it"):
        resumed("run/config.toml")


def test_a_moved_run_goes_on_where_it_lies(begun: Path, here: Path) -> None:
    Path("archive").mkdir()
    Path("run").rename("archive/first")
    train(resumed("archive/first/config.toml"), Observer())
    assert not Path("run").exists()
    assert load_config("archive/first/config.toml").output == "archive/first"
    assert sorted(path.name for path in Path("archive/first/checkpoints").glob("step-*")) == [
        "step-000001",
        "step-000002",
    ]


def test_a_copied_run_leaves_the_original_as_it_is(here: Path) -> None:
    shutil.copytree("run", "copy")
    before = content(here / "run")
    train(resumed("copy/config.toml"), Observer())
    assert content(here / "run") == before
    train(resumed("run/config.toml"), Observer())
    one, other = (content(here / name / "checkpoints/step-000002") for name in ("run", "copy"))
    assert one == other


def test_a_run_is_resumed_from_another_directory(here: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    noted = json.loads(Path("run/fingerprints.json").read_text())
    Path("run/fingerprints.json").write_text(json.dumps({**noted, "started_in": str(here)}))
    shutil.move("run", tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    train(resumed("elsewhere/config.toml"), Observer())
    assert load_config("elsewhere/config.toml").student.path == str(here / "student")


def test_a_model_that_was_moved_is_named_by_its_new_place(here: Path) -> None:
    noted = json.loads(Path("run/fingerprints.json").read_text())
    Path("run/fingerprints.json").write_text(json.dumps({**noted, "started_in": str(here)}))
    Path("teacher").rename("moved")
    with pytest.raises(ConfigurationError, match=r"teacher\.path is 'teacher', .* not there any more.* --set teacher="):
        resumed("run/config.toml")
    train(resumed("run/config.toml", "teacher=moved"), Observer())
    assert load_config("run/config.toml").teacher.path == "moved"


def test_a_file_that_is_only_called_like_a_run_s_is_a_run_file(here: Path) -> None:
    shutil.copy("run.toml", "config.toml")
    assert load_config("config.toml").output == "run"


HOLDER = """import sys, time
from pathlib import Path
from tutelage.locks import hold
hold(Path(sys.argv[1]), "")
print("held", flush=True)
time.sleep(600)"""


def test_one_process_at_a_time_has_a_run_folder(here: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, "run"], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        before = content(here / "run")
        with pytest.raises(
            OutputExistsError, match=rf"run is in use by process {holder.pid} on .*\. Wait for that one"
        ):
            resumed("run/config.toml")
        assert content(here / "run") == before
    finally:
        holder.kill()
        holder.communicate()
    train(resumed("run/config.toml"), Observer())


def test_a_folder_that_another_command_is_making_is_refused(here: Path) -> None:
    Path(".new.partial").mkdir()
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, ".new.partial"], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        run = build_run(load_config("run.toml", [*QUICK, "output=new"]))
        with pytest.raises(OutputExistsError, match=f"is in use by process {holder.pid} "):
            train(run, Observer())
        assert Path(".new.partial/.lock").exists()
    finally:
        holder.kill()
        holder.communicate()


def test_a_disk_that_is_full_while_the_folder_is_made_leaves_nothing(here: Path, tmp_path: Path) -> None:
    path, said = here / "run.toml", tmp_path / "said"
    path.write_text(path.read_text().replace('output = "run"', 'output = "above/new"'))

    def limited(monkeypatch: pytest.MonkeyPatch) -> None:
        # The trial before the first step writes a tokenizer, which is larger than the limit.
        monkeypatch.setattr("tutelage.config.assembly.check_savable", lambda *_: None)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, 1_000))

    before = content(here)
    assert exit_code(lambda: command(path, said), limited) == 2
    (line,) = said.read_text().splitlines()
    assert line.startswith("error: ") and "File too large" in line and "above/.new.partial/config.toml" in line
    assert content(here) == before and not Path("above").exists()


def test_a_run_that_ends_before_it_computes_leaves_nothing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: object, **__: object) -> None:
        raise DataError("no")

    monkeypatch.setattr(evaluating, "mark", refuses)
    with pytest.raises(DataError):
        train(build_run(load_config("run.toml", ["output=above/new"])), Observer())
    assert not Path("above").exists()
    with pytest.raises(DataError):
        train(resumed("run/config.toml", "steps=3", "evaluation.every=1"), Observer())
    assert Path("run/checkpoints").exists(), "a run that was begun earlier stays"
