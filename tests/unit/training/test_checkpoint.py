"""A checkpoint holds what is in memory, or it is none; what was meddled with is passed over or named in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.tiny_models import make_model
from tests.support.tiny_run import make_tokenizer
from tutelage.errors import CheckpointError, NonFiniteError
from tutelage.models import LanguageModel, MovingReference, Vocabulary
from tutelage.rollout import PairedEngine
from tutelage.runtime import Learner, LocalRuntime
from tutelage.training import (
    Checkpoints,
    CheckpointSettings,
    GradientUpdate,
    OptimizerSettings,
    TrainerState,
    UpdateContext,
    checkpoint,
    find_resumable,
    named_checkpoints,
    read_state,
)
from tutelage.training.checkpoint_files import fingerprint_of, load_update, restore_reference

VOCABULARY = Vocabulary(259, stop_ids=(256, 258), stop_id=256)


def learning() -> tuple[LanguageModel, torch.optim.Optimizer]:
    """A student after one update."""
    module = make_model(vocab_size=264, dtype=torch.float32)
    optimizer = OptimizerSettings(learning_rate=1e-3).make(module)
    update(module, optimizer)
    return LanguageModel(module, make_tokenizer(), (256,), "the student"), optimizer


def updating(student: LanguageModel) -> GradientUpdate:
    """An update of a student that has not learned yet."""
    settings, runtime = OptimizerSettings(), LocalRuntime("cpu")
    return GradientUpdate(
        UpdateContext(
            PairedEngine(student).models, Learner(student), runtime, lambda _: settings, seed=0, micro_batch_tokens=64
        )
    )


def update(module: Any, optimizer: torch.optim.Optimizer) -> None:
    module(input_ids=torch.tensor([[1, 2, 3]])).logits.square().mean().backward()
    LocalRuntime("cpu").update(optimizer, 1.0)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of steps 1 and 2; the second holds a reference."""
    folder = tmp_path_factory.mktemp("two")
    student, optimizer = learning()
    checkpoints = Checkpoints(folder, CheckpointSettings())
    checkpoints.save(TrainerState(1, 4), student, VOCABULARY, optimizer.state_dict())
    update(student.module, optimizer)
    checkpoints.save(TrainerState(2, 8), student, VOCABULARY, optimizer.state_dict(), student.trainable_state())
    return folder


@pytest.fixture
def folder(two: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(two, tmp_path / "checkpoints"))


@pytest.mark.parametrize("place", ["weight", "moment"])
def test_what_is_not_finite_is_not_saved(tmp_path: Path, place: str) -> None:
    student, optimizer = learning()
    checkpoints = Checkpoints(tmp_path, CheckpointSettings())
    checkpoints.save(TrainerState(1), student, VOCABULARY, optimizer.state_dict())
    weight = next(iter(student.module.parameters()))
    (weight.data if place == "weight" else optimizer.state[weight]["exp_avg_sq"])[0, 0] = float("inf")
    with pytest.raises(NonFiniteError, match="are not saved"):
        checkpoints.save(TrainerState(2), student, VOCABULARY, optimizer.state_dict())
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["index.json", "step-000001"]


@pytest.mark.parametrize("place", ["weight", "moment"])
def test_an_update_that_spoils_weights_or_moments_is_an_error(place: str) -> None:
    student, optimizer = learning()
    weight = next(iter(student.module.parameters()))
    if place == "moment":
        optimizer.state[weight]["exp_avg_sq"][0, 0] = float("inf")  # its weight stays as it is, for ever
    else:
        weight.data[0, 0] = 10
        optimizer.param_groups[0] |= {"lr": 1.0, "weight_decay": 1e38}  # 10 times 1e38 is more than there is
    with pytest.raises(NonFiniteError, match="after the update"):
        update(student.module, optimizer)


@pytest.mark.parametrize("what", ["weights", "moments"])
def test_a_checkpoint_that_is_not_what_is_in_memory_is_dropped(
    folder: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    student, optimizer = learning()
    checkpoints = Checkpoints(folder, CheckpointSettings())
    if what == "weights":
        save = checkpoint.save_student

        def altered(written: LanguageModel, vocabulary: Vocabulary, place: Path) -> None:
            weight = next(iter(written.module.parameters())).data
            weight[0, 0] += 1
            save(written, vocabulary, place)
            weight[0, 0] -= 1

        monkeypatch.setattr(checkpoint, "save_student", altered)
    else:
        save_tensors = torch.save
        monkeypatch.setattr(
            checkpoint.torch, "save", lambda content, place: save_tensors({**content, "state": {}}, place)
        )
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(CheckpointError, match="Earlier checkpoints are untouched"):
        checkpoints.save(TrainerState(3), student, VOCABULARY, optimizer.state_dict())
    assert sorted(path.name for path in folder.iterdir()) == before


class Runs:
    """Code in a pickle."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("ran"),))


def state(**changes: Any) -> Callable[[Path], object]:
    return lambda path: (path / "trainer.json").write_text(
        json.dumps(json.loads((path / "trainer.json").read_text()) | changes)
    )


def moments(change: Callable[[Any], object]) -> Callable[[Path], object]:
    def meddle(path: Path) -> None:
        content = torch.load(path / "optimizer.pt", weights_only=True)
        change(content)
        torch.save(content, path / "optimizer.pt")

    return meddle


MEDDLED: dict[str, Callable[[Path], object]] = {
    "no JSON": lambda path: (path / "trainer.json").write_text("{"),
    "nested without end": lambda path: (path / "trainer.json").write_text("[" * 100_000),
    "no object": lambda path: (path / "trainer.json").write_text("[1]"),
    "an unknown field": state(mood=1),
    "a step as text": state(step="2"),
    "another step": state(step=7),
    "a negative cursor": state(prompts_used=-1),
    "a step that is true": state(prompts_used=True),
    "a best value that is none": state(best_value=float("nan")),
    "code in the moments": lambda path: torch.save(Runs(), path / "optimizer.pt"),
    "torn moments": lambda path: (path / "optimizer.pt").write_bytes(b"PK\x03\x04torn"),
    "no moments": lambda path: torch.save([1], path / "optimizer.pt"),
    "moments that are not finite": moments(lambda content: content["state"][0]["exp_avg"].fill_(float("nan"))),
}


@pytest.mark.parametrize("is_signed", [False, True], ids=["", "manifest too"])
@pytest.mark.parametrize("case", MEDDLED)
def test_a_checkpoint_that_was_meddled_with_is_passed_over(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, is_signed: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    newest = folder / "step-000002"
    MEDDLED[case](newest)
    if is_signed:
        files = [path for path in sorted(newest.iterdir()) if path.name != "manifest.json"]
        (newest / "manifest.json").write_text(json.dumps({path.name: fingerprint_of(path) for path in files}))
    path, complaints = find_resumable(folder)
    assert path == folder / "step-000001" and len(complaints) == 1 and "\n" not in complaints[0]
    assert not (tmp_path / "ran").exists()
    if is_signed:
        with pytest.raises(CheckpointError):
            read_state(newest)
            load_update(newest, updating(learning()[0]))


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '{"a": 3}', '{"../../secret": {"bytes": 1}}', '{"/dev/zero": {"bytes": 1}}', "[" * 100_000, "{}"],
)
def test_a_manifest_that_was_meddled_with_is_passed_over(folder: Path, content: str) -> None:
    (folder / "step-000002" / "manifest.json").write_text(content)
    path, complaints = find_resumable(folder)
    assert (path == folder / "step-000001" and "manifest.json" in complaints[0]) or "missing" in complaints[0]


@pytest.mark.parametrize(
    "content", ["{", "[]", "3", '{"last": "../elsewhere"}', '{"last": 3}', '{"last": "/"}', "[" * 100_000]
)
def test_an_index_that_was_meddled_with_is_one_line(folder: Path, content: str) -> None:
    assert named_checkpoints(folder) == {"last": folder / "step-000002"}
    (folder / "index.json").write_text(content)
    with pytest.raises(CheckpointError, match="names no checkpoint beside it") as refusal:
        named_checkpoints(folder)
    assert "\n" not in str(refusal.value)


def test_moments_of_another_model_are_refused(folder: Path) -> None:
    newest, student = folder / "step-000002", learning()[0]
    smaller = make_model("llama", vocab_size=264, dtype=torch.float32, hidden_size=16)
    other = LanguageModel(smaller, student.tokenizer, student.stop_ids, "another student")
    load_update(newest, updating(student))
    with pytest.raises(
        CheckpointError, match=r"optimizer\.pt holds moments of another model than the student\. Remove"
    ):
        load_update(newest, updating(other))


def test_a_reference_that_does_not_fit_is_refused(folder: Path) -> None:
    student, _ = learning()
    reference = MovingReference(student, student, every=3)
    restore_reference(folder / "step-000002", reference, 2)
    torch.save({"a": torch.ones(2)}, folder / "step-000002" / "past.pt")
    with pytest.raises(CheckpointError, match="does not fit the student"):
        restore_reference(folder / "step-000002", reference, 2)
    restore_reference(folder / "step-000002", MovingReference(student, student, every=2), 2)  # it is not looked at
