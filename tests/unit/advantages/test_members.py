from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from tests.support.rollouts import rollout_of
from tutelage.advantages import Constant, ConstantByEntropy, NormalisedLogRatio, Sign, TeacherLogRatio
from tutelage.errors import ConfigurationError
from tutelage.types import Batch, Fact


def batch_of(lengths: list[int]) -> Batch:
    zeros = [torch.zeros(length) for length in lengths]
    return Batch([rollout_of([0], [0] * len(each), each, each, prompt_index=i // 2) for i, each in enumerate(zeros)])


def test_a_constant_is_the_same_for_every_token() -> None:
    assert Constant(-2.0)(batch_of([2, 1]), torch.zeros(3)).tolist() == [-2, -2, -2]
    assert Constant().needs == {Fact.teacher_drawn}


def test_a_constant_by_entropy_unlearns_most_where_the_student_is_least_sure() -> None:
    """OPSA's worked numbers; where all are equally sure it is a constant."""
    batch = batch_of([3, 1])
    for rollout, entropies in zip(batch.rollouts, ([0.1, 0.5, 0.9], [2.1]), strict=True):
        rollout.student = replace(rollout.student, entropy_T=torch.tensor(entropies))
    torch.testing.assert_close(ConstantByEntropy()(batch, torch.zeros(4)), torch.tensor([-0.5, -0.6, -0.7, -1.0]))
    some = replace(batch, weights_N=torch.tensor([0.0, 1.0, 1.0, 0.0]))  # least and most are those of the chosen tokens
    assert ConstantByEntropy()(some, torch.zeros(4))[1:3].tolist() == [-0.5, -1.0]
    for rollout in batch.rollouts:
        rollout.student = replace(rollout.student, entropy_T=torch.ones(len(rollout)))
    assert ConstantByEntropy()(batch, torch.zeros(4)).tolist() == [-0.75] * 4
    assert ConstantByEntropy().needs == {Fact.teacher_drawn, Fact.student_support}


def test_a_sign_says_which_way_and_not_how_far() -> None:
    target = torch.tensor([3.0, 0.0, -0.01])
    assert Sign()(batch_of([2, 1]), target).tolist() == [0.5, 0, -0.5]
    assert Sign(of=Constant(-7.0), size=2.0)(batch_of([2, 1]), target).tolist() == [-2, -2, -2]
    assert Sign().needs == TeacherLogRatio().needs


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
        (ConstantByEntropy, {"spread": -1.0}, "advantage.spread is -1; expected a finite number of at least 0"),
        (Sign, {"size": 0.0}, "advantage.size is 0; expected a finite number above 0"),
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
