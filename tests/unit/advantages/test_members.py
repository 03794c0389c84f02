from __future__ import annotations

import math

import pytest
import torch

from tests.support.rollouts import rollout_of
from tutelage.advantages import Constant, NormalisedLogRatio, TeacherLogRatio
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
        (NormalisedLogRatio, {"over": "answer"}, "advantage.over is 'answer'; expected one of prompt, batch"),
        (TeacherLogRatio, {"discount": 1.5}, "advantage.discount is 1.5; expected a share from 0 to 1"),
    ],
)
def test_impossible_fields_are_refused(member, fields, message) -> None:
    with pytest.raises(ConfigurationError, match=message):
        member(**fields)


def test_a_normalised_ratio_pools_the_tokens_of_a_prompt() -> None:
    """TOP-D's worked numbers; answers of 1 and 3 tokens are four numbers, not two means."""
    rewards = torch.tensor([0.2, -0.1, 0.3])
    found = NormalisedLogRatio()(batch_of([3]), rewards)
    torch.testing.assert_close(found, torch.tensor([0.5774, -1.1547, 0.5774]), atol=5e-5, rtol=0)
    unscaled = NormalisedLogRatio(divide=False)(batch_of([3]), rewards)
    torch.testing.assert_close(unscaled, torch.tensor([0.3, 0.2, 0.3]) - 0.8 / 3)
    pooled = torch.tensor([1.0, 0.3, 0.2, 0.3])
    found = NormalisedLogRatio()(batch_of([1, 3]), torch.tensor([1.0, 0.2, -0.1, 0.3]))
    torch.testing.assert_close(found, (pooled - pooled.mean()) / pooled.std())
    assert NormalisedLogRatio()(batch_of([1]), torch.ones(1)).tolist() == [0]


def test_prompts_are_pools_of_their_own_or_the_batch_is_one() -> None:
    rewards = torch.tensor([1.0, 3.0, 10.0, 30.0])
    batch = batch_of([1, 1, 1, 1])
    apart = NormalisedLogRatio(divide=False)(batch, rewards)
    assert apart.tolist() == [-1, 1, -10, 10]
    assert NormalisedLogRatio(over="batch", divide=False)(batch, rewards).tolist() == [-10, -8, -1, 19]


def test_the_proximal_teacher_of_nemo() -> None:
    """Gaps (1, 0, 2.5): the mean 7/6 is subtracted, and nothing is divided."""
    found = NormalisedLogRatio(future=False, over="batch", divide=False)(batch_of([2, 1]), torch.tensor([1.0, 0, 2.5]))
    torch.testing.assert_close(found, torch.tensor([-1 / 6, -7 / 6, 4 / 3]))
