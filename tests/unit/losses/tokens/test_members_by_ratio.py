"""Policy gradients and their clipped forms: worked numbers, and expected gradients by enumeration in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.groups import group_batch
from tests.support.token_world import ANSWERS, BEHAVIOUR, STUDENT, TARGET, expected_gradient, of_answers, reward_of
from tutelage.advantages import Advantage, Focal, GroupReward, Sum, TeacherLogRatio
from tutelage.errors import ConfigurationError
from tutelage.losses import TokenFacts, TokenLoss
from tutelage.losses.tokens import CISPO, AnchoredSurrogate, ClippedSurrogate, GatedImitation, PolicyGradient
from tutelage.losses.tokens.clipped_surrogate import log_ratio
from tutelage.losses.tokens.corrected import correction_weights

PLAIN = GroupReward("none", "none")


def value_and_slope(
    loss: TokenLoss, now: float, old: float, advantage: float, target: float = math.nan
) -> tuple[float, float]:
    leaf = torch.tensor([now], dtype=torch.float64, requires_grad=True)
    known, none = (torch.tensor([number], dtype=torch.float64) for number in (old, 0.5))
    aim, worth = (torch.tensor([number], dtype=torch.float64) for number in (target, advantage))
    facts = TokenFacts(known, known, aim, worth, none, none > 1, answer_log_ratios=leaf.detach() - known)
    value = loss.on_tokens(leaf, facts)
    (slope,) = torch.autograd.grad(value.sum(), leaf)
    return value.item(), slope.item()


@pytest.mark.parametrize(
    ("advantage", "ratio", "dual_clip", "value", "slope"),
    [
        (1.0, 1.5, math.inf, -1.2, 0.0),
        (1.0, 0.5, math.inf, -0.5, -0.5),
        (-1.0, 0.5, math.inf, 0.8, 0.0),
        (-1.0, 5.0, math.inf, 5.0, 5.0),
        (-1.0, 5.0, 3.0, 3.0, 0.0),
        (1.0, 5.0, 3.0, -1.2, 0.0),
        (1.0, 1.0, math.inf, -1.0, -1.0),
    ],
)
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_clipping_by_hand(
    advantage: float, ratio: float, dual_clip: float, value: float, slope: float, level: str
) -> None:
    """An answer of one token has the ratio of its token."""
    loss = ClippedSurrogate(dual_clip=dual_clip, ratio=level)
    assert value_and_slope(loss, math.log(ratio) - 3, -3.0, advantage) == pytest.approx((value, slope))


def test_bounds_may_differ() -> None:
    loss = ClippedSurrogate(epsilon_low=0.2, epsilon_high=0.28)
    assert value_and_slope(loss, math.log(1.25) - 3, -3.0, 1.0) == pytest.approx((-1.25, -1.25))
    assert value_and_slope(loss, math.log(1.5) - 3, -3.0, 1.0) == pytest.approx((-1.28, 0.0))


def test_clipped_importance_weights_keep_every_gradient() -> None:
    assert value_and_slope(CISPO(), math.log(7) - 3, -3.0, 1.0) == pytest.approx((-5.0, -5.0))
    assert value_and_slope(CISPO(ratio_floor=0.8), math.log(0.1) - 3, -3.0, -1.0) == pytest.approx((0.8, 0.8))
    assert value_and_slope(CISPO(), -3.0, -3.0, 2.0) == pytest.approx((-2.0, -2.0))


def test_a_sequence_ratio_is_the_geometric_mean_and_reaches_every_token() -> None:
    drifts = torch.tensor([0.2, -0.1, 0.3, 0.0], dtype=torch.float64)
    leaf = (drifts - 1).requires_grad_()
    old, worth = torch.full_like(drifts, -1.0), torch.ones_like(drifts)
    facts = TokenFacts(old, old, old, worth, worth / 2, worth < 0, answer_log_ratios=drifts.mean().expand(4))
    values = ClippedSurrogate(ratio="sequence").on_tokens(leaf, facts)
    (slopes,) = torch.autograd.grad(values.mean(), leaf)
    torch.testing.assert_close(values.detach(), torch.full_like(drifts, -1.105171), rtol=1e-6, atol=0)
    torch.testing.assert_close(slopes, torch.full_like(drifts, -1.105171 / 4), rtol=1e-6, atol=0)


def test_the_teacher_inside_the_ratio_by_hand() -> None:
    now, old, teacher = (math.log(p) for p in (0.3, 0.25, 0.5))
    value, slope = value_and_slope(AnchoredSurrogate(epsilon_low=0.2), now, old, 1.0, teacher)
    assert value == pytest.approx(-0.848528, abs=1e-6) and slope == pytest.approx(-0.848528, abs=1e-6)
    own = AnchoredSurrogate(own_share=1.0, epsilon_high=0.2)
    assert value_and_slope(own, now, old, 1.0, teacher) == value_and_slope(ClippedSurrogate(), now, old, 1.0)
    same = value_and_slope(AnchoredSurrogate(own_share=0.3), now, old, 1.0, old)
    assert same == pytest.approx(value_and_slope(ClippedSurrogate(epsilon_high=0.28), now, old, 1.0))
    assert value_and_slope(AnchoredSurrogate(), now, old, 0.0, teacher) == (0, 0)
    # Far from the teacher the clamp holds, and only the part of the old policy has a gradient.
    value, slope = value_and_slope(AnchoredSurrogate(own_share=0.25, epsilon_low=1.0), -3.0, -3.0, 1.0, -0.5)
    assert value == pytest.approx(-math.exp(-0.75)) and slope == pytest.approx(-0.25 * math.exp(-0.75))


def test_ratios_to_what_rules_a_token_out_are_bounded() -> None:
    now, anchor = torch.tensor([-1.0, -math.inf, -math.inf, -1.0]), torch.tensor([-math.inf, -1.0, -math.inf, -50.0])
    leaf = now.double().requires_grad_()
    found = log_ratio(leaf, anchor.double())
    assert found.tolist() == [20, -20, 0, 20]
    (slopes,) = torch.autograd.grad(found.sum(), leaf)
    assert slopes.tolist() == [0, 0, 0, 0]
    # Whom the teacher rules out, the anchored ratio holds at its bound, and nothing is imitated.
    value, slope = value_and_slope(AnchoredSurrogate(epsilon_high=9.0), -1.0, -1.0, 1.0, -math.inf)
    assert value == pytest.approx(-math.exp(0.5)) and slope == pytest.approx(-0.5 * math.exp(0.5))
    assert value_and_slope(GatedImitation(), -1.0, -1.0, 0.0, -math.inf)[1] == pytest.approx(0, abs=1e-9)


def policy_gradient(behaviour: Tensor = STUDENT) -> Tensor:
    """The gradient of minus the expected reward of the student's answers, which are drawn by themselves."""
    leaf = STUDENT.clone().requires_grad_()
    chances = of_answers(leaf.log_softmax(-1), ANSWERS).reshape(-1, 2).sum(-1).exp()
    (-(chances * torch.tensor([reward_of(answer) for answer in ANSWERS])).sum()).backward()
    assert leaf.grad is not None
    return leaf.grad


@pytest.mark.parametrize(
    ("loss", "group", "share"),
    [
        (PolicyGradient(PLAIN), 1, 1.0),
        (ClippedSurrogate(PLAIN), 1, 1.0),
        (ClippedSurrogate(PLAIN, ratio="sequence"), 1, 1.0),
        (CISPO(PLAIN), 1, 1.0),
        (PolicyGradient(GroupReward("leave_one_out", "none")), 2, 1.0),
        # The mean over all answers holds the answer itself: (G - 1) / G of the gradient.
        (PolicyGradient(GroupReward("group_mean", "none")), 2, 0.5),
        (ClippedSurrogate(GroupReward("leave_one_out", "none"), normaliser="sequence_mean"), 2, 1.0),
        (PolicyGradient(PLAIN, normaliser="constant", normaliser_tokens=4), 1, 0.5),
    ],
    ids=repr,
)
def test_the_expected_gradient_is_that_of_the_expected_reward(loss: TokenLoss, group: int, share: float) -> None:
    found, _ = expected_gradient(loss, group=group)
    torch.testing.assert_close(found, share * policy_gradient(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("baseline", [PLAIN, GroupReward("leave_one_out", "none")], ids=repr)
def test_a_reward_and_the_teacher_in_one_advantage_are_the_sum_of_two_gradients(baseline: Advantage) -> None:
    """KDRL: that of minus the expected reward, and beta times that of KL(p || q) of whole answers."""
    leaf, beta = STUDENT.clone().requires_grad_(), 0.3
    log_p = of_answers(leaf.log_softmax(-1), ANSWERS).reshape(-1, 2).sum(-1)
    log_q = of_answers(TARGET, ANSWERS).reshape(-1, 2).sum(-1)
    (log_p.exp() * (log_p - log_q)).sum().backward()
    assert leaf.grad is not None
    both = Sum((baseline, TeacherLogRatio(discount=1.0)), (1.0, beta))
    found, _ = expected_gradient(PolicyGradient(both), group=baseline.min_samples_per_prompt)
    torch.testing.assert_close(found, policy_gradient() + beta * leaf.grad, rtol=1e-9, atol=1e-12)


def test_focal_scaling_in_groups_of_two_is_a_factor() -> None:
    """Two answers of which one is right have a share of 1/2, and all other groups of two teach nothing."""
    right = GroupReward("leave_one_out", "none", reward="right")
    plain, _ = expected_gradient(PolicyGradient(right), group=2)
    for gamma in (0.5, 1.0, 2.0):
        found, _ = expected_gradient(PolicyGradient(Focal(right, gamma, reward="right")), group=2)
        torch.testing.assert_close(found, 0.5**gamma * plain, rtol=1e-9, atol=1e-12)


def test_with_the_teacher_in_the_ratio_every_token_counts_by_it() -> None:
    """RLAD inside its clip, before the student has moved: Σ_y p(y) R(y) Σ_t (p/q)^(1-a) grad log p."""
    leaf, own_share = STUDENT.clone().requires_grad_(), 0.4
    log_p = of_answers(leaf.log_softmax(-1), ANSWERS)
    weights = (1 - own_share) * (log_p.detach() - of_answers(TARGET, ANSWERS))
    chances = log_p.detach().reshape(-1, 2).sum(-1).exp()
    rewards = torch.tensor([reward_of(answer) for answer in ANSWERS])
    (-(chances * rewards) @ (weights.exp() * log_p).reshape(-1, 2).sum(-1)).backward()
    loss = AnchoredSurrogate(PLAIN, epsilon_low=1.0, epsilon_high=99.0, own_share=own_share, max_teacher_log_ratio=19.0)
    found, _ = expected_gradient(loss)
    torch.testing.assert_close(found, leaf.grad, rtol=1e-9, atol=1e-12)


def test_a_sequence_weight_makes_another_policys_answers_count_as_the_students() -> None:
    corrected = PolicyGradient(PLAIN, correction="sequence_truncate", correction_cap=1e9)
    found, _ = expected_gradient(corrected, BEHAVIOUR)
    torch.testing.assert_close(found, policy_gradient(), rtol=1e-9, atol=1e-12)
    uncorrected, _ = expected_gradient(PolicyGradient(PLAIN, correction="none"), BEHAVIOUR)
    assert not torch.allclose(uncorrected, policy_gradient(), rtol=0.05)


@pytest.mark.parametrize(
    ("correction", "cap", "floor", "expected"),
    [
        ("token_truncate", 2.0, 0.0, [1.6487, 0.8187, 2.0]),
        ("token_mask", 2.0, 0.0, [1.6487, 0.8187, 0.0]),
        ("token_mask", 2.0, 0.9, [1.6487, 0.0, 0.0]),
        ("sequence_truncate", 3.0, 0.0, [3.0] * 3),
        ("sequence_mask", 3.0, 0.0, [0.0] * 3),
        ("sequence_mask", 4.0, 0.0, [math.exp(1.3)] * 3),
    ],
)
def test_corrections_by_hand(correction: str, cap: float, floor: float, expected: list[float]) -> None:
    batch = group_batch([1.0], [3], student=[-1.0, -1.0, -1.0], behaviour=[-1.5, -0.8, -2.0])
    assert correction_weights(batch, correction, cap, floor).tolist() == pytest.approx(expected, abs=1e-4)


def test_what_the_student_drew_itself_needs_no_correction() -> None:
    batch = group_batch(
        [1.0, 0.0], [2, 3], student=[-0.1, -3.0, -2.0, -0.7, -0.2], behaviour=[-0.1, -3.0, -2.0, -0.7, -0.2]
    )
    for correction in ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask"):
        assert correction_weights(batch, correction, 2.0).tolist() == [1.0] * 5


@pytest.mark.parametrize(
    ("member", "fields", "message"),
    [
        (ClippedSurrogate, {"epsilon_low": 1.5}, r"loss\.epsilon_low is 1\.5; expected a number from 0 to 1"),
        (ClippedSurrogate, {"epsilon_high": -1}, r"loss\.epsilon_high is -1"),
        (ClippedSurrogate, {"dual_clip": 1.0}, r"loss\.dual_clip is 1; expected a number above 1"),
        (ClippedSurrogate, {"ratio": "answer"}, r"loss\.ratio is 'answer'; expected 'token' or 'sequence'"),
        (AnchoredSurrogate, {"own_share": 1.1}, r"loss\.own_share is 1\.1"),
        (AnchoredSurrogate, {"max_teacher_log_ratio": 0}, r"loss\.max_teacher_log_ratio is 0"),
        (CISPO, {"ratio_cap": 0.2}, r"loss\.ratio_cap is 0\.2; expected a finite ratio of at least 1, not a distance"),
        (CISPO, {"ratio_floor": 2}, r"loss\.ratio_floor is 2"),
        (PolicyGradient, {"correction": "always"}, r"loss\.correction is 'always'; expected one of token_truncate"),
        (PolicyGradient, {"correction_cap": 0}, r"loss\.correction_cap is 0"),
        (PolicyGradient, {"correction_floor": 3.0}, r"loss\.correction_floor is 3; expected a ratio from 0"),
        (PolicyGradient, {"correction_floor": 0.5}, r"loss\.correction = 'token_truncate' has no floor"),
    ],
)
def test_impossible_fields_are_refused(member: type[TokenLoss], fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        member(**fields)
