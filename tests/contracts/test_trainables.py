"""What every trainable keeps, whatever learns. A new member joins by a line in MEMBERS."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.support.adapters import SEQUENCES, logprobs, shake
from tests.support.quick_run import made
from tests.support.tiny_models import make_model
from tests.support.tiny_run import write_run_file
from tutelage.errors import ConfigurationError, ModelError
from tutelage.models import (
    ALL_WEIGHTS,
    TRAINABLES,
    AdapterSettings,
    LanguageModel,
    Trainable,
    TrainableSettings,
    load_language_model,
    load_tokenizer,
    reference_snapshot,
)
from tutelage.models.trainables import Base
from tutelage.training import Observer, train

MEMBERS: list[TrainableSettings] = [
    ALL_WEIGHTS,
    AdapterSettings("lora", rank=3, alpha=6),
    AdapterSettings("rslora", rank=3, alpha=6),
    AdapterSettings("dora", rank=3, alpha=6, target_modules=("q_proj", "down_proj")),
]
SWITCHES = ["rollout.compile", "runtime.compile", "runtime.gradient_checkpointing"]


# What a member costs that is a part of the model's own weights.
class Norms(Trainable):
    """The scales of the normalising layers."""

    def parameters(self) -> dict[str, nn.Parameter]:
        return {name: weight for name, weight in self.module.named_parameters() if "norm" in name}


@dataclass(frozen=True)
class NormsSettings(TrainableSettings):
    """Only scales of normalising layers learn."""

    kind: ClassVar[type[Trainable]] = Norms


every_member = pytest.mark.parametrize("settings", [*MEMBERS, NormsSettings()], ids=repr)


def learner(settings: TrainableSettings, seed: int = 0, **shape: Any) -> LanguageModel:
    """A model in float64 in which something learns."""
    module = make_model(initializer_range=0.1, **shape)
    return LanguageModel(module, trainable=settings.put_on(module, Base("base"), seed))


def loss(model: LanguageModel) -> Tensor:
    return -model.logits(model.hidden_packed(SEQUENCES)).log_softmax(-1)[:, 3].mean()


def gradients(model: LanguageModel) -> dict[str, Tensor]:
    return {name: weight.grad for name, weight in model.module.named_parameters() if weight.grad is not None}


def copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in state.items()}


def test_every_member_is_here() -> None:
    assert {type(settings) for settings in MEMBERS} == set(TRAINABLES.values())


@every_member
def test_a_fresh_one_changes_no_bit_and_follows_the_seed(settings: TrainableSettings) -> None:
    assert torch.equal(logprobs(learner(settings)), logprobs(learner(ALL_WEIGHTS)))
    first, same = (learner(settings, seed=4).trainable.state() for _ in range(2))
    assert all(torch.equal(first[name], same[name]) for name in first)


@every_member
def test_only_its_parameters_get_gradients(settings: TrainableSettings) -> None:
    model = learner(settings)
    shake(model, 1)
    model.module.requires_grad_(True)
    model.enable_grad()
    loss(model).backward()  # type: ignore[no-untyped-call]
    assert gradients(model).keys() == model.trainable.parameters().keys()


@every_member
def test_the_state_is_copied_and_comes_back(settings: TrainableSettings) -> None:
    model = learner(settings)
    shake(model, 1)
    before, kept = logprobs(model), copied(model.trainable_state())
    shake(model, 2)
    assert not torch.equal(logprobs(model), before)
    model.load_trainable_state(kept)
    assert torch.equal(logprobs(model), before)
    shake(model, 3)
    model.load_trainable_state(kept)
    assert torch.equal(logprobs(model), before), "what was loaded is not what learns on"


@every_member
def test_a_folder_gives_back_what_learned(settings: TrainableSettings, tmp_path: Path) -> None:
    model, other = learner(settings), learner(settings, seed=1)
    shake(model, 1)
    shake(other, 2)
    tmp_path.joinpath("saved").mkdir()
    model.trainable.save(tmp_path / "saved")
    twin = model.trainable.read_back(tmp_path / "saved", "the model")
    assert torch.equal(logprobs(LanguageModel(twin)), logprobs(model))
    other.trainable.load(tmp_path / "saved")
    assert torch.equal(logprobs(other), logprobs(model))
    shake(model, 3)
    with pytest.raises(ModelError, match=r"other numbers|does not hold"):
        model.trainable.read_back(tmp_path / "saved", "the model")


@every_member
def test_what_stands_beside_the_weights_can_be_tried_without_them(settings: TrainableSettings, tmp_path: Path) -> None:
    model = learner(settings)
    model.trainable.save(tmp_path, with_weights=False)
    assert not any(path.stat().st_size > 30_000 for path in tmp_path.iterdir())
    model.trainable.read_back(tmp_path, "the model", with_weights=False)


@every_member
def test_a_replacement_ends_as_it_began_and_leaves_a_graph_whole(settings: TrainableSettings) -> None:
    model = learner(settings)
    shake(model, 1)
    other = copied(model.trainable_state())
    wanted = logprobs(model)
    shake(model, 2)
    before, places = logprobs(model), {name: w.data_ptr() for name, w in model.trainable.parameters().items()}
    model.enable_grad()

    def found(is_replaced_meanwhile: bool) -> dict[str, Tensor]:
        model.module.zero_grad()
        value = loss(model)
        if is_replaced_meanwhile:
            with model.trainable.replaced_by(other):
                assert torch.equal(logprobs(model), wanted)
        value.backward()  # type: ignore[no-untyped-call]
        return gradients(model)

    expected, with_replacement = copied(found(False)), found(True)
    assert all(torch.equal(with_replacement[name], gradient) for name, gradient in expected.items())
    with pytest.raises(ZeroDivisionError), model.trainable.replaced_by(other):
        _ = 1 / 0
    with pytest.raises(KeyError), model.trainable.replaced_by({}):
        pass
    assert torch.equal(logprobs(model), before)
    assert {name: w.data_ptr() for name, w in model.trainable.parameters().items()} == places


@every_member
@pytest.mark.parametrize("tie", [True, False], ids=["tied", "untied"])
def test_merged_weights_make_a_plain_model_of_the_same_logits(settings: TrainableSettings, tie: bool) -> None:
    model, plain = learner(settings, tie=tie), make_model(seed=5, tie=tie)
    shake(model, 1)
    before, state = logprobs(model), copied(model.module.state_dict())
    merged = model.trainable.merged_weights()
    assert torch.equal(logprobs(model), before)
    assert all(torch.equal(value, state[name]) for name, value in model.module.state_dict().items())
    plain.load_state_dict(merged)
    torch.testing.assert_close(logprobs(LanguageModel(plain)), before, rtol=0, atol=1e-9)
    used_up = LanguageModel(model.trainable.merged())
    assert dict(used_up.module.named_parameters()).keys() == dict(plain.named_parameters()).keys()
    torch.testing.assert_close(logprobs(used_up), before, rtol=0, atol=1e-9)


@every_member
def test_fixed_weights_compute_the_same_and_a_change_afterwards_is_seen(settings: TrainableSettings) -> None:
    model = learner(settings)
    for seed in range(2):
        shake(model, seed)
        with model.weights_fixed():
            fixed = [logprobs(model) for _ in range(2)]
        assert torch.equal(fixed[0], logprobs(model)) and torch.equal(fixed[1], fixed[0])


@every_member
def test_an_obstacle_says_what_to_do(settings: TrainableSettings) -> None:
    trainable = learner(settings).trainable
    for switch in SWITCHES:
        obstacle = trainable.obstacle(switch)
        assert obstacle is None or f"Set {switch} = false" in obstacle


@every_member
def test_a_snapshot_stays_what_the_student_was(settings: TrainableSettings) -> None:
    model = learner(settings)
    shake(model, 1)
    model.enable_grad()
    snapshot, before = reference_snapshot(model), logprobs(model)
    assert (snapshot.module is model.module) != settings.kind.changes_backbone
    shake(model, 2)
    assert torch.equal(logprobs(snapshot), before) and not torch.equal(logprobs(model), before)
    snapshot.load_trainable_state(model.trainable_state())
    assert torch.equal(logprobs(snapshot), logprobs(model))
    shake(model, 3)
    assert not torch.equal(logprobs(snapshot), logprobs(model)), "it was a copy"


@pytest.mark.parametrize("is_fast", [True, False], ids=["our forward", "the module's"])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=str)
@every_member
def test_a_snapshot_reads_beside_a_student_whose_weights_are_fixed(
    settings: TrainableSettings, autocast: torch.dtype | None, is_fast: bool
) -> None:
    """Neither reads what was kept of the other's weights: copies in the type of autocast, or norms."""
    model = learner(settings, dtype=torch.float32)
    shake(model, 1)
    model.enable_grad()
    snapshot = reference_snapshot(model)
    shake(model, 2)
    for each in (model, snapshot):
        each.autocast, each.fast_forward = autocast, is_fast
    expected = [logprobs(model), logprobs(snapshot)]
    assert not torch.equal(*expected)
    with model.weights_fixed():
        found = [logprobs(each) for each in (model, snapshot, model, snapshot)]
    assert all(torch.equal(one, other) for one, other in zip(found, expected * 2, strict=True))


@pytest.mark.runs
def test_a_member_of_ones_own_is_found_by_name_trained_and_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file and a line in the table: `Norms` above is all that this run knows of it."""
    monkeypatch.setitem(TRAINABLES, "norms", NormsSettings)
    run = made(write_run_file(tmp_path), "steps=2", "student.trainable=norms")
    student = run.models.student
    before = copied(student.module.state_dict())
    train(run, Observer())
    checkpoint = tmp_path / "run/checkpoints/step-000002"
    written = load_file(checkpoint / "model.safetensors")
    changed = {name for name, weight in written.items() if not torch.equal(weight, before[name])}
    assert changed == {name for name in before if "norm" in name} == student.trainable.parameters().keys()
    moments = torch.load(checkpoint / "optimizer.pt", weights_only=True)["state"]
    assert len(moments) == len(changed), "the optimizer holds nothing else"
    opened = load_language_model(str(checkpoint), load_tokenizer(str(checkpoint)), trainable=NormsSettings())
    assert torch.equal(logprobs(opened), logprobs(student))
    assert opened.trainable.parameters().keys() == changed


@pytest.mark.runs
def test_what_learns_is_named_with_its_fields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_run_file(tmp_path, steps=1)
    by_name, in_short = (
        made(path, f"output={tmp_path / table}", f"student.{table}.rank=3", *more)
        for table, more in (("trainable", ["student.trainable.name=lora"]), ("adapter", []))
    )
    named, short = by_name.models.student.trainable_state(), in_short.models.student.trainable_state()
    assert named.keys() == short.keys() and all(torch.equal(named[name], short[name]) for name in named)
    train(by_name, Observer())
    resumed = made(tmp_path / "trainable/config.toml", "steps=2", resume=True)
    assert resumed.models.student.trainable_state().keys() == by_name.models.student.trainable_state().keys()


def test_what_cannot_learn_is_refused_by_the_run_files_key(tmp_path: Path) -> None:
    path = write_run_file(tmp_path)
    for overrides, message in {
        ("student.trainable=lorra",): r"student\.trainable\.name is 'lorra'; expected one of all_weights, lora",
        ("student.trainable.rank=3",): r"student\.trainable\.name is None; expected one of",
        ("student.trainable.name=lora", "student.trainable.rnk=3"): r"'student\.trainable\.rnk'\. Did you mean stud",
        ("student.trainable.name=lora", "student.trainable.rank=0"): r"student\.trainable\.rank is 0; it must be",
        ("student.trainable.name=lora", "student.trainable.rank=x"): r"student\.trainable\.rank is 'x'; it should be",
        ("student.trainable=lora", "student.adapter.rank=3"): r"set beside student\.adapter, which is short for",
        ("student.trainable=3",): r"student\.trainable is 3; it should be a table",
    }.items():
        with pytest.raises(ConfigurationError, match=message):
            made(path, *overrides)
    assert not (tmp_path / "run").exists()
