"""What every update keeps, whatever it does. A member of UPDATES is tested as it is; two more are made here."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.support.quick_run import StopAt, made, metrics
from tests.support.tiny_models import make_model
from tests.support.tiny_run import write_run_file
from tutelage.divergences import ReverseKL
from tutelage.errors import CheckpointError, ConfigurationError, RunInterrupted
from tutelage.models import LanguageModel
from tutelage.policies import Student
from tutelage.rollout import PairedEngine
from tutelage.runtime import Learner, LocalRuntime
from tutelage.targets import Teacher
from tutelage.training import (
    UPDATES,
    BatchSource,
    Observer,
    OptimizerSettings,
    Pending,
    PromptOrder,
    Recipe,
    RolloutSettings,
    Stopwatch,
    Update,
    UpdateContext,
    collect,
    train,
)
from tutelage.training.updates import add_gradient
from tutelage.types import Batch, Prompt

RECIPE = Recipe(Student(), Teacher(), (ReverseKL(),))


class PlainDescent(Update):
    """w <- w - rate · gradient.  No state."""

    def prepare(self, step: int, recipe: Recipe, collect: Callable[[], Batch]) -> Pending:
        batch = collect()
        add_gradient(self.context, step, recipe, batch)
        return Pending(step, batch)

    @torch.no_grad()
    def commit(self, pending: Pending) -> dict[str, float]:
        rate = self.context.settings_at(pending.step).rate_at(pending.step)
        for weight in self.weights:
            weight -= rate * weight.grad
        self.abandon()
        self.context.learner.publish()
        return {"learning_rate": rate}

    def abandon(self) -> None:
        self.context.learner.model.module.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state:
            raise CheckpointError("the state of another update")

    @property
    def weights(self) -> list[Any]:
        return [weight for weight in self.context.learner.model.module.parameters() if weight.requires_grad]


@dataclass(frozen=True)
class PendingDirection(Pending):
    """Which way is better, and by how much."""

    direction: list[Tensor]
    gain: float


class RandomDirection(PlainDescent):
    """Two batches per step, on both sides of the student; w <- w + rate · (better by how much) · direction.

    Without a gradient. Its state is the mean of all gains so far, which the next gain is compared with.
    """

    def __init__(self, context: UpdateContext) -> None:
        super().__init__(context)
        self.mean_gain = torch.zeros((), dtype=torch.float64)

    @torch.no_grad()
    def prepare(self, step: int, recipe: Recipe, collect: Callable[[], Batch]) -> PendingDirection:
        generator = torch.Generator().manual_seed(step)
        direction = [0.01 * torch.randn(weight.shape, generator=generator).to(weight) for weight in self.weights]
        before, batches = [weight.clone() for weight in self.weights], []
        try:
            for sign in (1, -1):
                for weight, own, way in zip(self.weights, before, direction, strict=True):
                    weight.copy_(own + sign * way)
                batches.append(collect())
        finally:
            for weight, own in zip(self.weights, before, strict=True):
                weight.copy_(own)
        better, worse = (float(batch.joined("teacher.logprobs_T").mean()) for batch in batches)
        return PendingDirection(step, batches[0], direction, better - worse)

    @torch.no_grad()
    def commit(self, pending: PendingDirection) -> dict[str, float]:
        gain = pending.gain - float(self.mean_gain)
        for weight, way in zip(self.weights, pending.direction, strict=True):
            weight += gain * way
        self.mean_gain += (pending.gain - self.mean_gain) / (pending.step + 1)
        self.context.learner.publish()
        return {"loss": -pending.gain}

    def state_dict(self) -> dict[str, Any]:
        return {"mean_gain": self.mean_gain}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state.keys() != {"mean_gain"}:
            raise CheckpointError("the state of another update")
        self.mean_gain = state["mean_gain"].clone()


MEMBERS: dict[str, Callable[[UpdateContext], Update]] = {**UPDATES, "plain": PlainDescent, "random": RandomDirection}
members = pytest.mark.parametrize("member", MEMBERS.values(), ids=list(MEMBERS))


def interrupted_backward(learner: Learner, passes: Any) -> None:
    """Ctrl-C comes when the first gradient is there."""
    passes[0]().backward()
    raise RunInterrupted("stopped")


class Steps:
    """A student, a teacher and an update, without a run around them."""

    def __init__(self, member: Callable[[UpdateContext], Update], **settings: Any) -> None:
        student = make_model("qwen3", vocab_size=24, stop_ids=7, seed=1)
        teacher = make_model("llama", vocab_size=28, stop_ids=[7, 8], seed=2).requires_grad_(False)
        engine, runtime = PairedEngine(student, teacher), LocalRuntime("cpu")
        self.student: LanguageModel = engine.models.student
        prompts = [Prompt([1, 2, 3]), Prompt([4]), Prompt([5, 6, 1, 2])]
        rollout = RolloutSettings(prompts_per_step=3, samples_per_prompt=2, max_new_tokens=8)
        order = PromptOrder(3, 3)
        self.source = BatchSource(
            engine.models, engine, engine, prompts, [None] * 3, order, rollout, None, runtime, seed=0
        )
        optimizer = OptimizerSettings(learning_rate=1e-3, **settings)
        learner = Learner(engine.models.student)
        self.context = UpdateContext(
            engine.models, learner, runtime, lambda _: optimizer, seed=0, micro_batch_tokens=16
        )
        self.update = member(self.context)

    def collect(self, step: int) -> Batch:
        return collect(self.source, step, RECIPE, Stopwatch())

    def prepare(self, step: int) -> Pending:
        pending: Pending = self.update.prepare(step, RECIPE, partial(self.collect, step))
        return pending

    def commit(self, step: int) -> dict[str, float]:
        return self.update.commit(self.prepare(step))

    @property
    def weights(self) -> dict[str, Tensor]:
        return {name: weight.detach().clone() for name, weight in self.student.module.named_parameters()}

    @property
    def has_gradient(self) -> bool:
        return any(weight.grad is not None for weight in self.student.module.parameters())


def are_equal(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    read: dict[str, Any] = torch.load(file, weights_only=True)
    return read


@members
def test_preparing_leaves_the_weights_as_they_are_and_committing_changes_them(
    member: Callable[[UpdateContext], Update],
) -> None:
    steps = Steps(member)
    before = steps.weights
    pending = steps.prepare(0)
    assert are_equal(before, steps.weights)
    assert pending.step == 0 and len(pending.batch.rollouts) == 6
    numbers = steps.update.commit(pending)
    assert not are_equal(before, steps.weights) and not steps.has_gradient
    assert all(isinstance(value, float) for value in numbers.values())


@members
@pytest.mark.parametrize("moment", ["while it collects", "while it computes"])
def test_what_an_interrupted_preparation_leaves_is_forgotten(
    member: Callable[[UpdateContext], Update], moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed, steps = Steps(member), Steps(member)
    for each in (undisturbed, steps):
        each.commit(0)
    before = steps.weights

    def stopped(*_: Any) -> None:
        raise RunInterrupted("stopped")

    with monkeypatch.context() as patch:
        if moment == "while it collects":
            patch.setattr(Steps, "collect", stopped)
        else:
            patch.setattr(Learner, "backward", interrupted_backward)
        if member is RandomDirection and moment == "while it computes":
            steps.prepare(1)  # it asks for no gradient
        else:
            with pytest.raises(RunInterrupted):
                steps.prepare(1)
    steps.update.abandon()
    assert are_equal(before, steps.weights) and not steps.has_gradient
    steps.commit(1)
    undisturbed.commit(1)
    assert are_equal(steps.weights, undisturbed.weights)


@members
def test_the_state_goes_on_to_the_same_bytes(member: Callable[[UpdateContext], Update]) -> None:
    steps, other = Steps(member), Steps(member)
    steps.commit(0)
    steps.commit(1)
    other.student.module.load_state_dict(steps.student.module.state_dict())
    other.update.load_state_dict(through_a_file(steps.update.state_dict()))
    for each in (steps, other):
        each.commit(2)
    assert are_equal(steps.weights, other.weights)


@members
def test_the_state_of_something_else_is_refused(member: Callable[[UpdateContext], Update]) -> None:
    with pytest.raises(CheckpointError):
        Steps(member).update.load_state_dict({"something": torch.zeros(2)})


@pytest.mark.runs
@pytest.mark.parametrize("member", [PlainDescent, RandomDirection])
def test_a_member_of_ones_own_is_found_by_name_and_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, member: type[Update]
) -> None:
    monkeypatch.setitem(UPDATES, "own", member)
    path, own = write_run_file(tmp_path), ["steps=2", "optimizer.warmup_steps=0", "optimizer.name=own"]
    train(made(path, *own, f"output={tmp_path / 'whole'}"), Observer())
    with pytest.raises(RunInterrupted):
        train(made(path, *own), StopAt(0))
    train(made(path, *own, resume=True), Observer())
    whole, cut = tmp_path / "whole", tmp_path / "run"
    assert len(metrics(whole)) == 2 and metrics(whole) == metrics(cut)
    start, one, other = (
        load_file(folder / "model.safetensors")
        for folder in (tmp_path / "student", *(each / "checkpoints/step-000002" for each in (whole, cut)))
    )
    assert are_equal(one, other)
    assert any(not torch.equal(start[name], weight) for name, weight in one.items() if name in start)


@dataclass(frozen=True)
class OwnSettings(OptimizerSettings):
    """Fields: share: of the learning rate that is used."""

    share: float = 1.0


class Slower(PlainDescent):
    """With a setting of its own."""

    settings = OwnSettings

    def commit(self, pending: Pending) -> dict[str, float]:
        settings = self.context.settings_at(pending.step)
        assert isinstance(settings, OwnSettings)
        return {**super().commit(pending), "share": settings.share}


@pytest.mark.runs
def test_a_member_may_have_settings_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(UPDATES, "slower", Slower)
    path, own = write_run_file(tmp_path), ["steps=1", "optimizer.name=slower", "optimizer.share=0.5"]
    train(made(path, *own), Observer())
    assert metrics(tmp_path / "run")[0]["share"] == 0.5
    assert "share = 0.5" in (tmp_path / "run/config.toml").read_text(), "and what is left is the run's"
    for override, message in {
        "optimizer.share=much": r"optimizer\.share is 'much'; it should be a valid number",
        "optimizer.shared=1": r"unknown configuration key 'optimizer\.shared'\. Did you mean optimizer\.share\?",
        "optimizer.name=sgd": r"optimizer\.name is 'sgd'; expected one of adamw, slower\.",
        "optimizer.name=adamw": r"unknown configuration key 'optimizer\.share'",
    }.items():
        with pytest.raises(ConfigurationError, match=message):
            made(path, *own, override)


def test_epochs_are_the_same_updates_again_on_the_weights_as_they_are_by_then() -> None:
    steps, by_hand = Steps(UPDATES["adamw"], epochs_per_batch=2), Steps(UPDATES["adamw"])
    numbers = steps.commit(0)
    batch = by_hand.collect(0)
    found = [by_hand.update.commit(by_hand.update.prepare(0, RECIPE, lambda: batch)) for _ in range(2)]
    assert are_equal(steps.weights, by_hand.weights)
    assert numbers == {name: (found[0][name] + found[1][name]) / 2 for name in numbers}
    assert found[0]["loss"] != found[1]["loss"]


def test_several_updates_per_batch_are_updates_on_its_parts() -> None:
    """Prompts 0 and 2 make the first part, prompt 1 the second; the answers are those of the student before both."""
    steps, by_hand = Steps(UPDATES["adamw"], updates_per_batch=2), Steps(UPDATES["adamw"])
    numbers = steps.commit(0)
    batch, found = by_hand.collect(0), []
    for prompts in ({0, 2}, {1}):
        part = Batch([rollout for rollout in batch.rollouts if rollout.prompt_index in prompts])
        found.append(by_hand.update.commit(by_hand.update.prepare(0, RECIPE, lambda part=part: part)))
    assert are_equal(steps.weights, by_hand.weights)
    assert numbers == {name: sum(each[name] for each in found) / 2 for name in numbers}
    (moments,) = {float(each["step"]) for each in steps.update.state_dict()["state"].values()}
    assert moments == 2


@pytest.mark.runs
def test_a_run_with_several_updates_per_batch_is_resumed(tmp_path: Path) -> None:
    path, several = write_run_file(tmp_path), ["steps=2", "optimizer.updates_per_batch=3"]
    train(made(path, *several, f"output={tmp_path / 'whole'}"), Observer())
    with pytest.raises(RunInterrupted):
        train(made(path, *several), StopAt(0))
    train(made(path, *several, resume=True), Observer())
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")
    state = torch.load(tmp_path / "run/checkpoints/step-000002/optimizer.pt", weights_only=True)["state"]
    assert {float(each["step"]) for each in state.values()} == {6.0}
    with pytest.raises(ConfigurationError, match=r"updates_per_batch is 4, but .*prompts_per_step = 3 prompts"):
        made(path, "optimizer.updates_per_batch=4")


def test_a_part_keeps_what_belongs_to_its_answers() -> None:
    steps, seen = Steps(UPDATES["adamw"], updates_per_batch=3), []
    rollouts = steps.collect(0).rollouts
    batch = Batch(rollouts, {"correct": torch.arange(6.0)}, pairs=[(1, 0), (5, 4), (0, 5)], own=[0, 1, 4])
    seen = steps.update.prepare(0, RECIPE, lambda: batch).parts
    assert [part.rollouts for part in seen] == [rollouts[:2], rollouts[2:4], rollouts[4:]]
    assert [part.rewards["correct"].tolist() for part in seen] == [[0, 1], [2, 3], [4, 5]]
    assert [part.pairs for part in seen] == [[(1, 0)], [], [(1, 0)]]
    assert [part.own for part in seen] == [[0, 1], [], [0]]
