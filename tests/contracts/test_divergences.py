"""What every divergence keeps, through every support. A new member joins by a line in MEMBERS."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import replace

import pytest
import torch
from pytest import ParameterSet
from torch import Tensor

from tutelage.divergences import (
    GENERATORS,
    AlphaDivergence,
    Balanced,
    Divergence,
    EntropyAware,
    FDivergence,
    ForwardKL,
    JensenShannon,
    NormalisedKD,
    ResidualReverseKL,
    ReverseKL,
    SampledNLL,
    SampledReverseKL,
    Sinkhorn,
    SkewForwardKL,
    SkewReverseKL,
    TotalVariation,
    TrustSplit,
)
from tutelage.errors import ConfigurationError
from tutelage.losses import DISTRIBUTION_LOSSES, TOKEN_LOSSES, Loss, TokenLoss
from tutelage.losses.tokens import (
    CISPO,
    AnchoredSurrogate,
    ClippedSurrogate,
    GatedImitation,
    PolicyGradient,
    SampledKL,
)
from tutelage.training.forms.chunked import in_chunks
from tutelage.types import DenseTarget

INF = math.inf

MEMBERS: list[Divergence] = [
    ReverseKL(),
    ForwardKL(),
    JensenShannon(target_share=0.0),
    JensenShannon(target_share=0.1),
    JensenShannon(),
    JensenShannon(target_share=1.0),
    SkewForwardKL(),
    SkewForwardKL(skew=0.0),
    SkewReverseKL(),
    TotalVariation(),
    AlphaDivergence(order=-0.5),
    AlphaDivergence(order=0.0),
    AlphaDivergence(),
    AlphaDivergence(order=1.0),
    AlphaDivergence(order=2.0),
    *(FDivergence(generator=name) for name in GENERATORS),
    Balanced(sharpness=0.0),
    Balanced(forward_share=1.0),
    EntropyAware(forward_top_k=3),
    EntropyAware(entropy_threshold=-1.0, forward_weight=0.5, forward_top_k=99),
    NormalisedKD(),
    NormalisedKD(others_weight=0.5, temperature=2.0),
    Sinkhorn(transport_weight=1.0, group_tokens=4),
    Sinkhorn(transport_weight=0.1, forward_weight=0.0, group_tokens=2, epsilon=1.0),
]

# Taken on sampled tokens: a single value may be negative, and what they promise is an expectation, which is enumerated
# in tests/unit/losses/tokens.
ON_SAMPLED: list[TokenLoss] = [
    SampledReverseKL(),
    SampledReverseKL(baseline="expected"),
    SampledNLL(),
    TrustSplit(),
    ResidualReverseKL(),
    PolicyGradient(),
    ClippedSurrogate(dual_clip=3.0),
    AnchoredSurrogate(),
    CISPO(),
    SampledKL(),
    SampledKL(to="target", estimator="k3"),
    GatedImitation(),
]

# Cross-entropies, and transport that blurs: 0 at equal distributions they are not.
NOT_ZERO_AT_EQUALITY = (EntropyAware, NormalisedKD, Sinkhorn)

# Members with a weight that is not differentiated: their gradient is not that of their value.
WITH_FROZEN_WEIGHT = [Balanced(), Balanced(forward_share=0.2, sharpness=3.0)]

SUPPORTS = [
    {"support": "full"},
    {"support": "student_top_k", "top_k": 3, "rest": "tail"},
    {"support": "student_top_k", "top_k": 3, "rest": "renormalised"},
    {"support": "student_top_k", "top_k": 3, "rest": "truncated"},
    {"support": "student_top_k", "top_k": 1, "rest": "renormalised"},
    {"support": "teacher_top_k", "top_k": 3, "rest": "tail"},
    {"support": "teacher_top_k", "top_k": 3, "rest": "renormalised"},
    {"support": "union_top_k", "top_k": 3, "rest": "truncated"},
    {"support": "union_top_k", "top_k": 99, "rest": "tail"},
]

# Fields that cannot work, each with the words that must be in the refusal.
IMPOSSIBLE = [
    (JensenShannon, {"target_share": 1.5}, r"^divergence\.target_share is 1\.5; expected a share from 0 to 1"),
    (JensenShannon, {"target_share": math.nan}, r"divergence\.target_share is nan"),
    (SkewForwardKL, {"skew": 1.0}, r"divergence\.skew is 1; expected a share from 0 to below 1"),
    (SkewReverseKL, {"skew": -0.1}, r"divergence\.skew is -0\.1"),
    (AlphaDivergence, {"order": INF}, r"divergence\.order is inf; expected a finite number"),
    (FDivergence, {"generator": "kl"}, r"divergence\.generator is 'kl'; expected one of forward_kl, reverse_kl"),
    (Balanced, {"forward_share": 2}, r"divergence\.forward_share is 2"),
    (Balanced, {"sharpness": -1}, r"divergence\.sharpness is -1"),
    (EntropyAware, {"forward_top_k": 0}, r"divergence\.forward_top_k is 0; expected at least 1 event"),
    (EntropyAware, {"forward_weight": -1}, r"divergence\.forward_weight is -1"),
    (EntropyAware, {"entropy_threshold": math.nan}, r"divergence\.entropy_threshold is nan"),
    (NormalisedKD, {"temperature": 0}, r"divergence\.temperature is 0; expected a finite number above 0"),
    (NormalisedKD, {"others_weight": -1}, r"divergence\.others_weight is -1"),
    (Sinkhorn, {"support": "student_top_k"}, r"sinkhorn compares distributions at different tokens.*'full'"),
    (Sinkhorn, {"epsilon": 0}, r"divergence\.epsilon is 0"),
    (Sinkhorn, {"iterations": 0}, r"divergence\.iterations is 0; expected from 1 to 10,000"),
    (Sinkhorn, {"iterations": 10**18}, r"divergence\.iterations is 1e\+18; expected from 1 to 10,000"),
    (Sinkhorn, {"transport_weight": -1}, r"divergence\.transport_weight is -1"),
    (SampledReverseKL, {"discount": 1.1}, r"divergence\.discount is 1\.1"),
    (SampledReverseKL, {"ratio_cap": 0}, r"divergence\.ratio_cap is 0; expected a ratio above 0"),
    (SampledReverseKL, {"baseline": "mean"}, r"divergence\.baseline is 'mean'; expected one of none, expected"),
    (ResidualReverseKL, {"tail": "dropped"}, r"divergence\.tail is 'dropped'; expected one of residual, sampled"),
    (ResidualReverseKL, {"support": "full"}, r"divergence\.support is 'full', which leaves no tail to correct"),
    (ResidualReverseKL, {"rest": "truncated"}, r"divergence\.rest is 'truncated', which leaves no tail to correct"),
    (ResidualReverseKL, {"ratio_cap": 0}, r"divergence\.ratio_cap is 0; expected a ratio above 0"),
    (TrustSplit, {"acceptance": "always"}, r"divergence\.acceptance is 'always'; expected one of sampled, expected"),
    (TrustSplit, {"outliers": "dropped"}, r"divergence\.outliers is 'dropped'; expected one of forward_kl, scalar"),
]


def seen(members: list[Divergence]) -> list[ParameterSet]:
    """Members through all supports that they take; beyond the first two supports it is a sweep."""
    return [
        pytest.param(replace(member, **support), marks=[pytest.mark.sweeps] * (number >= 2))  # type: ignore[arg-type]
        for member in members
        for number, support in enumerate(SUPPORTS[:1] if isinstance(member, Sinkhorn) else SUPPORTS)
    ]


every_view = pytest.mark.parametrize("divergence", seen(MEMBERS + WITH_FROZEN_WEIGHT), ids=repr)
EVERY_MEMBER = MEMBERS + WITH_FROZEN_WEIGHT + ON_SAMPLED
every_member = pytest.mark.parametrize("member", EVERY_MEMBER, ids=repr)
# Members that look at sampled tokens alone look through none.
every_member_with_a_support = pytest.mark.parametrize(
    "member", [member for member in EVERY_MEMBER if hasattr(member, "support")], ids=repr
)


def rows(holes: float = 0.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Student and target logits [2, 4, 7] in float64, with impossible tokens where asked for."""
    generator = torch.Generator().manual_seed(seed)
    student, noise = 2 * torch.randn(2, 2, 4, 7, generator=generator, dtype=torch.float64)
    target = student / 2 + noise
    for logits in (student, target):
        impossible = torch.rand(logits.shape, generator=generator) < holes
        impossible[..., 0] = False
        logits.masked_fill_(impossible, -INF)
    return student, target


def test_every_member_is_here() -> None:
    assert {type(member) for member in (*MEMBERS, *WITH_FROZEN_WEIGHT, *ON_SAMPLED)} == set(
        {**DISTRIBUTION_LOSSES, **TOKEN_LOSSES}.values()
    )


@pytest.mark.parametrize("member", MEMBERS + WITH_FROZEN_WEIGHT, ids=repr)
def test_a_sum_over_events_may_be_added_up_over_parts(member: Divergence) -> None:
    """And a member that does not declare it is none, so that no member misses tiles that it could have."""
    student, target = (logits.log_softmax(-1) for logits in rows())
    parts = [member.between(student[..., part], target[..., part]) for part in (slice(0, 3), slice(3, 7))]
    is_sum = torch.allclose(parts[0] + parts[1], member.between(student, target), rtol=1e-12)
    has_constant_weight = isinstance(member, Balanced) and (member.sharpness == 0 or member.forward_share in (0, 1))
    assert is_sum == (member.is_sum_over_events or has_constant_weight)


@pytest.mark.parametrize("member", MEMBERS, ids=repr)
def test_members_of_the_jensen_shannon_family_say_so(member: Divergence) -> None:
    share = member.generalised_jsd_share
    if share is not None:
        student, target = rows(holes=0.2)
        same = JensenShannon(target_share=share, support="full")
        torch.testing.assert_close(replace(member, support="full")(student, target), same(student, target))


@every_view
def test_is_never_negative(divergence: Divergence) -> None:
    for seed in range(3):
        values = divergence(*rows(seed=seed))
        assert values.shape == (2, 4) and values.isfinite().all()
        if divergence.rest != "truncated" or divergence.support == "full":
            assert (values >= -1e-12).all()


@pytest.mark.parametrize("member", MEMBERS + WITH_FROZEN_WEIGHT, ids=repr)
def test_is_zero_for_equal_distributions_and_only_there(member: Divergence) -> None:
    divergence = replace(member, support="full")
    student, target = rows()
    if not isinstance(divergence, NOT_ZERO_AT_EQUALITY):
        torch.testing.assert_close(divergence(student, student + 3), torch.zeros(2, 4).double(), rtol=0, atol=1e-12)
    assert (divergence(student, target) > 1e-3).all()


@pytest.mark.parametrize("divergence", seen(MEMBERS), ids=repr)
def test_gradients_match_finite_differences(divergence: Divergence) -> None:
    student, target = (logits[0, :2] for logits in rows(seed=1))
    leaf = student.clone().requires_grad_()
    factors = torch.tensor([1.0, 2.0]).double()
    (divergence(leaf, target) * factors).sum().backward()
    step = 1e-6
    for index in [(0, 0), (0, 3), (0, 6), (1, 1), (1, 4)]:
        ends = []
        for sign in (1, -1):
            moved = student.clone()
            moved[index] += sign * step
            ends.append((divergence(moved, target) * factors).sum())
        assert leaf.grad is not None
        expected = (ends[0] - ends[1]) / (2 * step)
        torch.testing.assert_close(leaf.grad[index], expected, rtol=1e-5, atol=1e-7)


@every_view
def test_impossible_tokens_give_no_nan(divergence: Divergence) -> None:
    """Neither in values nor in gradients, not even where the value is infinite."""
    if divergence.rest == "renormalised":
        divergence = replace(divergence, rest="tail")
    for dtype in (torch.float32, torch.float64):
        student, target = (logits.to(dtype) for logits in rows(holes=0.4))
        leaf = student.requires_grad_()
        values = divergence(leaf, target)
        assert not values.isnan().any()
        values.sum().backward()
        assert leaf.grad is not None and leaf.grad.isfinite().all()
    # Where both sides rule out the same tokens, nothing is infinite.
    both = (student == -INF) | (target == -INF)
    assert divergence(student.masked_fill(both, -INF), target.masked_fill(both, -INF)).isfinite().all()


@every_view
def test_rows_and_padding_do_not_matter(divergence: Divergence) -> None:
    student, target = rows()
    values = divergence(student, target)
    padded = divergence(*(torch.cat([logits, torch.zeros(1, 4, 7)]) for logits in (student, target)))
    torch.testing.assert_close(padded[:2], values)
    group = divergence.tokens_per_group or 1
    for first in range(0, 4, group):
        span = slice(first, first + group)
        torch.testing.assert_close(divergence(student[1, span], target[1, span]), values[1, span])


@every_view
def test_shifts_and_the_order_of_the_vocabulary_do_not_matter(divergence: Divergence) -> None:
    student, target = rows()
    values, order = divergence(student, target), torch.randperm(7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(divergence(student + 100, target - 50), values)
    torch.testing.assert_close(divergence(student[..., order], target[..., order]), values)


@every_view
def test_chunks_change_nothing(divergence: Divergence) -> None:
    """10 tokens of two answers, cut as the objective cuts them."""
    torch.manual_seed(0)
    hidden, head, target = torch.randn(10, 5).double(), torch.randn(5, 7).double(), torch.randn(10, 7).double()
    group = divergence.tokens_per_group
    pieces = {
        "whole": (10, None) if group is None else (group, [6, 4]),
        "cut": (3, None) if group is None else (group, [6, 4]),
        "apart": (4 if group is None else group, [6, 4]),
    }
    found = []
    for chunk_tokens, lengths in pieces.values():
        leaf = hidden.clone().requires_grad_()

        def per_token(hidden_nD: Tensor, span: slice) -> dict[str, Tensor]:
            return {"divergence": divergence(hidden_nD @ head, DenseTarget(target[span]))}

        values = in_chunks(per_token, leaf, chunk_tokens, lengths)["divergence"]
        values.sum().backward()
        found.append((values.detach(), leaf.grad))
    for values, gradient in found[1:]:
        torch.testing.assert_close(values, found[0][0])
        torch.testing.assert_close(gradient, found[0][1])
    torch.testing.assert_close(found[0][0][:6], divergence((hidden @ head)[:6], target[:6]))


@every_view
def test_no_gradient_reaches_the_target(divergence: Divergence) -> None:
    student, target = (logits.requires_grad_() for logits in rows())
    divergence(student, target).sum().backward()
    assert target.grad is None and student.grad is not None


@every_member
def test_is_frozen_hashable_and_says_what_it_needs(member: Loss) -> None:
    assert hash(member) == hash(replace(member)) and member == replace(member)
    with pytest.raises(dataclasses.FrozenInstanceError):
        member.coefficient = 3  # type: ignore[misc]
    window = member.window
    if window is not None:
        assert window.fact in member.needs and window.needs_full_target == (member.support != "student_top_k")


@every_member_with_a_support
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"top_k": 0}, "divergence.top_k is 0"),
        ({"rest": "forget"}, "divergence.rest is 'forget'; expected one of tail, renormalised, truncated"),
        ({"support": "teacher"}, "divergence.support is 'teacher'; expected one of student_top_k, teacher_top_k"),
    ],
)
def test_refuses_impossible_supports(member: Divergence, fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        replace(member, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(("member", "fields", "message"), IMPOSSIBLE)
def test_refuses_impossible_fields_with_the_reason(
    member: type[Divergence], fields: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        member(**fields)  # type: ignore[arg-type]
