"""A reference that follows its student: the recurrence, what a checkpoint must hold, what cannot work."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.tiny_models import make_model
from tutelage.errors import ConfigurationError
from tutelage.models import (
    ALL_WEIGHTS,
    AdapterSettings,
    LanguageModel,
    MovingReference,
    Reference,
    TrainableSettings,
    reference_snapshot,
)
from tutelage.models.trainables import Base

SEQUENCES = [[1, 2, 3, 4, 5], [7, 8]]
each_kind = pytest.mark.parametrize("settings", [ALL_WEIGHTS, AdapterSettings(rank=2)], ids=["all weights", "adapter"])


def followed(settings: TrainableSettings, **numbers: Any) -> MovingReference:
    """A student, and a reference that begins as it, in float64 where that is what learns."""
    module = make_model()
    student = LanguageModel(module, trainable=settings.put_on(module, Base("base"), 0))
    return MovingReference(student, reference_snapshot(student), **numbers)


def learn(student: LanguageModel, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for weight in student.trainable.parameters().values():
        weight.data += 0.1 * torch.randn(weight.shape, generator=generator, dtype=weight.dtype)


def copied(model: LanguageModel) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.trainable_state().items()}


@each_kind
@pytest.mark.parametrize("share", [1.0, 0.9, 0.3, 1e-3])
def test_the_weights_follow_the_recurrence(settings: TrainableSettings, share: float) -> None:
    """phi <- a theta + (1 - a) phi at steps 0, 2 and 4; nothing in between, and no gradient."""
    reference = followed(settings, every=2, share=share)
    phi = {name: value.double() for name, value in copied(reference.student).items()}
    for step in range(6):
        reference.refresh(step)
        if step % 2 == 0:
            theta = copied(reference.student)
            phi = {name: share * theta[name].double() + (1 - share) * value for name, value in phi.items()}
        for name, value in reference.model.trainable_state().items():
            eps = torch.finfo(value.dtype).eps
            torch.testing.assert_close(value.double(), phi[name], rtol=4 * eps, atol=4 * eps)
        learn(reference.student, step)
    assert not any(weight.requires_grad for weight in reference.model.trainable_state().values())


@each_kind
def test_a_share_of_one_copies_to_the_last_bit(settings: TrainableSettings) -> None:
    reference = followed(settings, every=1)
    for step in range(3):
        learn(reference.student, step)
        reference.refresh(step)
        before = reference.model.hidden_packed(SEQUENCES)
        assert torch.equal(before, reference.student.hidden_packed(SEQUENCES))
        assert all(
            torch.equal(value, reference.student.trainable_state()[name])
            for name, value in reference.model.trainable_state().items()
        )


@each_kind
def test_a_mean_reads_with_its_own_weights(settings: TrainableSettings) -> None:
    reference = followed(settings, every=1, share=0.5)
    first = reference.model.hidden_packed(SEQUENCES)
    reference.refresh(0)
    assert torch.equal(reference.model.hidden_packed(SEQUENCES), first), "at step 0 it is the student"
    learn(reference.student, 0)
    reference.refresh(1)
    found, student = reference.model.hidden_packed(SEQUENCES), reference.student.hidden_packed(SEQUENCES)
    assert not torch.equal(found, first) and not torch.equal(found, student)
    with reference.student.trainable.replaced_by(copied(reference.model)):
        assert torch.equal(reference.student.hidden_packed(SEQUENCES), found)


@each_kind
def test_a_restored_one_goes_on_as_the_other(settings: TrainableSettings) -> None:
    one, other = (followed(settings, every=2, share=0.25) for _ in range(2))
    for reference in (one, other):
        for step in range(5):
            if step == 3 and reference is other:
                state = copied(reference.model)
                reference.model.load_trainable_state(reference.student.trainable_state())
                reference.restore(state)
            reference.refresh(step)
            learn(reference.student, step)
    for name, value in one.model.trainable_state().items():
        assert torch.equal(value, other.model.trainable_state()[name])


def test_a_checkpoint_holds_what_cannot_be_made_again() -> None:
    hard, soft = (followed(ALL_WEIGHTS, every=3, share=share) for share in (1.0, 0.5))
    for step in range(1, 7):
        assert (hard.state_at(step) is None) == (step % 3 == 0), "a copy that can be made again need not be kept"
        assert soft.state_at(step) is not None
    fixed = Reference()
    fixed.refresh(0)
    fixed.restore({})
    assert fixed.state_at(1) is None


def test_a_mean_in_float32_follows_a_student_in_bfloat16() -> None:
    """Each step is less than bfloat16 resolves, and all of them together arrive."""
    student, model = (LanguageModel(make_model(dtype=dtype)) for dtype in (torch.bfloat16, torch.float32))
    model.load_trainable_state(student.trainable_state())
    reference = MovingReference(student, model, every=1, share=1e-3)
    for weight in student.trainable.parameters().values():
        weight.data += 1
    name, before = next((name, value.clone()) for name, value in model.trainable_state().items())
    for step in range(1000):
        reference.refresh(step)
    moved = (model.trainable_state()[name] - before) / (student.trainable_state()[name].float() - before)
    torch.testing.assert_close(moved.mean().double(), torch.tensor(1 - (1 - 1e-3) ** 1000).double(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("numbers", [{"every": 0}, {"every": 1, "share": 0.0}, {"every": 1, "share": 1.5}])
def test_numbers_that_cannot_work_are_refused(numbers: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"reference\.refresh_every is \d and reference\.share"):
        followed(ALL_WEIGHTS, **numbers)


@pytest.mark.parametrize("settings", [ALL_WEIGHTS, AdapterSettings(rank=2)], ids=["all weights", "adapter"])
def test_a_mean_of_a_constant(settings: TrainableSettings) -> None:
    """From 0 towards 1 it is 1 - 0.95^n; of an adapter A and B move each by itself, so their product moves less."""
    reference = followed(settings, every=1, share=0.05)
    for weight in reference.student.trainable.parameters().values():
        weight.data.fill_(1)
    for mean in reference.model.trainable_state().values():
        mean.fill_(0)
    for step, expected in ((1, 0.05), (2, 0.0975), (3, 0.142625)):
        reference.refresh(step)
        for mean in reference.model.trainable_state().values():
            torch.testing.assert_close(mean, torch.full_like(mean, expected))
