"""Every checkpoint says what it was made from; `tutelage verify` takes the digests again and names what differs."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import pytest

import tutelage
from tests.support.changed_inputs import CHANGES
from tests.support.commands import Command
from tests.support.quick_run import QUICK
from tests.support.tiny_run import write_run_file
from tutelage.config import build_run, fingerprints, load_config, verify_run
from tutelage.errors import CheckpointError, ConfigurationError
from tutelage.training import Observer, train

pytestmark = pytest.mark.runs
SETS = 'evaluation.sets=[{path="judged.jsonl", name="sums", limit=3}]'


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models, prompts and the folder "run" of a run with checkpoints of steps 1 and 2."""
    folder = tmp_path_factory.mktemp("finished")
    path = write_run_file(folder)
    path.write_text(path.read_text().replace(f"{folder}/", ""))
    shutil.copy(folder / "prompts.jsonl", folder / "judged.jsonl")
    own = [SETS, "evaluation.num_samples=1", "evaluation.every=0", "checkpoint.every=1", "steps=2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train(build_run(load_config("run.toml", [*QUICK, *own])), Observer())
    return folder


@pytest.fixture
def here(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, in which the test works."""
    place = shutil.copytree(finished, tmp_path / "here")
    monkeypatch.chdir(place)
    return place


@pytest.fixture
def verify(tutelage: Command) -> Command:
    return partial(tutelage, "verify")


def forget_inputs(checkpoint: Path) -> None:
    """The checkpoint as an earlier version wrote it."""
    (checkpoint / "inputs.json").unlink()
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    del manifest["inputs.json"]
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


def test_every_checkpoint_names_what_it_was_made_from(here: Path) -> None:
    recorded = json.loads((here / "run/fingerprints.json").read_text())["inputs"]
    for step in (1, 2):
        checkpoint = here / f"run/checkpoints/step-{step:06d}"
        assert json.loads((checkpoint / "inputs.json").read_text()) == {"inputs": recorded}
        assert "inputs.json" in json.loads((checkpoint / "manifest.json").read_text())
    named = {
        "student",
        "teacher",
        "prompts",
        "answers",
        "templates",
        "tokenizer",
        "vocabulary",
        "evaluation",
        "versions",
    }
    assert recorded.keys() == named


def test_an_untouched_run_is_verified_wherever_it_lies(here: Path, verify: Command) -> None:
    said = "step-000001  as it says\nstep-000002  as it says\n"
    assert verify("run") == (0, said, "")
    (here / "run").rename(here / "moved")
    (here / "prompts.jsonl").rename(here / "elsewhere.jsonl")
    text = (here / "moved/config.toml").read_text()
    (here / "moved/config.toml").write_text(text.replace('"prompts.jsonl"', '"elsewhere.jsonl"'))
    assert verify("moved/checkpoints/step-000002") == (0, "step-000002  as it says\n", ""), "content counts, not names"


@pytest.mark.parametrize("name", CHANGES)
def test_what_changed_is_named(here: Path, name: str) -> None:
    change, expected = CHANGES[name]
    change(here)
    for verdict in verify_run(here / "run"):
        assert verdict.is_recorded and not verdict.is_verified
        labels = {line.partition(": ")[0] for line in verdict.differences}
        assert labels == {fingerprints.INPUTS[each] for each in expected}
    assert all(verdict.is_verified and verdict.accepted for verdict in verify_run(here / "run", tuple(expected)))


def test_from_python_and_as_a_document(here: Path, verify: Command) -> None:
    change, expected = CHANGES["an answer"]
    change(here)
    verdicts = tutelage.verify("run")
    code, out, err = verify("run", "--json")
    assert (code, err) == (1, "") and len(verdicts) == 2
    assert json.loads(out) == {"is_verified": False, "checkpoints": [verdict.as_dict() for verdict in verdicts]}
    assert all(verdict.is_verified for verdict in tutelage.verify("run", accept=list(expected)))


def test_other_libraries_are_named(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = fingerprints.library_versions()
    monkeypatch.setattr(fingerprints, "library_versions", lambda: {**versions, "torch": "99.0"})
    (line,) = verify_run(here / "run")[0].differences
    assert line == f"the versions of the libraries: versions.torch is '99.0', was '{versions['torch']}'"


def test_a_damaged_file_is_named_of_its_checkpoint_only(here: Path, verify: Command) -> None:
    with (here / "run/checkpoints/step-000001/config.json").open("a") as file:
        file.write(" ")
    code, out, err = verify("run")
    assert (code, err) == (1, "")
    assert out.splitlines() == [
        "step-000001  differs in 1", "  files: config.json is not what was written", "step-000002  as it says",
    ]  # fmt: skip


def test_damaged_inputs_are_damage(here: Path, verify: Command) -> None:
    (here / "run/checkpoints/step-000002/inputs.json").write_text('{"inputs')
    code, out, _ = verify("run/checkpoints/step-000002")
    assert code == 1 and out == "step-000002  differs in 1\n  files: inputs.json is not what was written\n"


def test_what_cannot_be_read_is_said_in_one_line_and_the_rest_is_compared(here: Path, verify: Command) -> None:
    (here / "prompts.jsonl").write_text("no JSON\n")
    CHANGES["the student's weights"][0](here)
    code, out, _ = verify("run/checkpoints/step-000002")
    first, weights, gone = out.splitlines()
    assert code == 1 and first == "step-000002  differs in 2"
    assert weights.startswith("  the model files of the student: student.weights is ")
    assert gone.startswith("  prompts, answers: cannot be taken again (") and "line 1 is not JSON" in gone


def test_checkpoints_of_earlier_versions_are_read_and_said_to_have_none(here: Path, verify: Command) -> None:
    forget_inputs(here / "run/checkpoints/step-000001")
    code, out, _ = verify("run")
    assert code == 1 and out.splitlines() == [
        "step-000001  does not say what it was made from (an earlier version wrote it)", "step-000002  as it says",
    ]  # fmt: skip
    forget_inputs(here / "run/checkpoints/step-000002")
    run = build_run(load_config("run/config.toml", ["steps=3"]), resume=True)
    assert run.start.checkpoint == Path("run/checkpoints/step-000002") and run.messages == []
    train(run, Observer())
    assert [verdict.is_recorded for verdict in verify_run(here / "run")] == [False, True]


def test_what_was_accepted_is_in_later_checkpoints(here: Path) -> None:
    change, expected = CHANGES["an answer"]
    change(here)
    train(build_run(load_config("run/config.toml", ["steps=3"]), resume=True, accept=tuple(expected)), Observer())
    before, after = verify_run(here / "run")
    assert not before.is_verified and after.is_verified
    noted = json.loads((after.path / "inputs.json").read_text())["accepted"]
    assert noted == json.loads((here / "run/fingerprints.json").read_text())["accepted"] and noted[0]["step"] == 2


def test_what_is_no_run_is_refused(here: Path, verify: Command) -> None:
    for path in (here, here / "nowhere", here / "student"):
        with pytest.raises(CheckpointError, match="neither the folder of a run nor a checkpoint in one"):
            verify_run(path)
    with pytest.raises(ConfigurationError, match=r"--accept names 'weights'; expected one of prompts"):
        verify_run(here / "run", ["weights"])
    shutil.rmtree(here / "run/checkpoints")
    code, out, err = verify("run")
    assert (code, out) == (2, "") and err == "error: run has no checkpoint yet. Let the run save one first.\n"
