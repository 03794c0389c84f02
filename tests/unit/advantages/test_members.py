from __future__ import annotations

import math

import pytest
import torch

from tests.support.rollouts import rollout_of
from tutelage.advantages import Constant, TeacherLogRatio
from tutelage.errors import ConfigurationError
from tutelage.types import Batch, Fact


def batch_of(lengths: list[int]) -> Batch:
    zeros = [torch.zeros(length) for length in lengths]
    return Batch([rollout_of([0], [0] * len(each), each, each, prompt_index=i // 2) for i, each in enumerate(zeros)])


def test_a_constant_is_the_same_for_every_token() -> None:
    assert Constant(-2.0)(batch_of([2, 1]), torch.zeros(3)).tolist() == [-2, -2, -2]
    assert Constant().needs == {Fact.teacher_drawn}


def test_a_ratio_is_that_of_the_token_and_says_what_it_needs() -> None:
    target = torch.tensor([0.5, -1.0, 2.0])
    assert torch.equal(TeacherLogRatio()(batch_of([2, 1]), target), target)
    assert TeacherLogRatio().needs == {Fact.student_token, Fact.teacher_token}
    assert TeacherLogRatio(leave_one_out=True).needs == {Fact.student_token, Fact.teacher_token, Fact.group}
    assert torch.equal(TeacherLogRatio(leave_one_out=True)(batch_of([1, 1]), target[:2]), torch.tensor([1.5, -1.5]))


@pytest.mark.parametrize(
    ("member", "fields", "message"),
    [
        (Constant, {"value": math.nan}, "advantage.value is nan; expected a finite number"),
        (TeacherLogRatio, {"discount": 1.5}, "advantage.discount is 1.5; expected a share from 0 to 1"),
    ],
)
def test_impossible_fields_are_refused(member, fields, message) -> None:
    with pytest.raises(ConfigurationError, match=message):
        member(**fields)
