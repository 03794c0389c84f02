"""What single policies do beyond the contract that all of them keep."""

from __future__ import annotations

import math

import pytest
import torch

from tutelage.distributions import kl_divergence, normalise, trust_region_blend
from tutelage.policies import Interleaved, Student, Teacher, TeacherPrefix, Temperature, TrustRegion
from tutelage.schedules import Constant, Cosine, Linear

P, Q = torch.tensor([0.6, 0.3, 0.1]).log(), torch.tensor([0.2, 0.3, 0.5]).log()


def test_trust_region_reports_where_it_stopped() -> None:
    behaviour = TrustRegion(0.05)(P, Q)
    blend = trust_region_blend(P, Q, 0.05)
    torch.testing.assert_close(behaviour.logprobs_BV, blend.logprobs_BV)
    expected = {"blend": blend.blend_B, "kl_to_student": blend.kl_to_student_B}
    assert behaviour.diagnostics.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(behaviour.diagnostics[name], value, rtol=1e-4, atol=0)


def test_teacher_is_the_far_end_of_the_path() -> None:
    diagnostics = Teacher()(P, Q).diagnostics
    assert diagnostics["blend"].item() == 1
    assert diagnostics["kl_to_student"].item() == pytest.approx(0.584996, abs=1e-6)


def test_student_has_nothing_to_report() -> None:
    assert Student()(P, None).diagnostics == {}


def test_trust_region_asks_for_no_teacher_once_its_budget_is_spent() -> None:
    policy = TrustRegion(Linear(0.05, 0.0, 25))
    assert policy.needs_teacher
    assert [policy.at(step).needs_teacher for step in (0, 24, 25, 400)] == [True, True, False, False]
    assert not TrustRegion(0.0).needs_teacher
    assert TrustRegion(0.0).at(0) == Student()


def test_a_constant_schedule_needs_no_resolving() -> None:
    assert torch.equal(TrustRegion(Constant(0.01))(P, Q).logprobs_BV, TrustRegion(0.01)(P, Q).logprobs_BV)


def test_temperature_sharpens_and_flattens() -> None:
    squared = P.exp() ** 2 / (P.exp() ** 2).sum()
    torch.testing.assert_close(Temperature(0.5)(P).logprobs_BV.exp(), squared)
    rooted = P.exp() ** 0.5 / (P.exp() ** 0.5).sum()
    behaviour = Temperature(2)(P)
    torch.testing.assert_close(behaviour.logprobs_BV.exp(), rooted)
    torch.testing.assert_close(behaviour.diagnostics["kl_to_student"], kl_divergence(rooted.log(), P))


def test_temperature_zero_takes_the_first_of_the_most_probable() -> None:
    behaviour = Temperature(0)(torch.tensor([[1.0, 3.0, 3.0, 0.0], [5.0, -math.inf, 1.0, 0.0]]))
    none = -math.inf
    assert behaviour.logprobs_BV.tolist() == [[none, 0.0, none, none], [0.0, none, none, none]]
    torch.testing.assert_close(behaviour.diagnostics["kl_to_student"][1], -normalise(torch.tensor([5.0, 1, 0]))[0])


def test_temperature_near_zero_does_not_overflow() -> None:
    for temperature in (1e-3, 1e-20, 1e-44):
        logprobs = Temperature(temperature)(torch.tensor([-4000.0, -3000.0, -3500.0])).logprobs_BV
        assert logprobs.tolist() == [-math.inf, 0.0, -math.inf] or logprobs.exp().tolist() == [0.0, 1.0, 0.0]


def test_a_broken_row_stays_broken() -> None:
    rows = torch.tensor([[math.nan, 0.0], [-math.inf, -math.inf]])
    for policy in (Student(), Temperature(0.7), Temperature(0)):
        assert policy(rows, None).logprobs_BV.isnan().any(-1).all()


def test_temperature_warm_up_ends_in_the_student() -> None:
    policy = Temperature(Linear(0.6, 1.0, 4))
    numbers = [policy.at(step).temperature for step in range(4)]  # type: ignore[attr-defined]
    assert numbers == pytest.approx([0.6, 0.7, 0.8, 0.9])
    assert [policy.at(step) for step in (4, 5, 400)] == [Student()] * 3


def test_teacher_prefix_follows_the_papers_curriculum() -> None:
    """floor((1 + cos(pi t / T)) / 2 * L): all, half and none of the answer at t = 0, T / 2 and T (arXiv 2606.01249)."""
    policy = TeacherPrefix(Cosine(101.0, 0.0, 200))
    expected = [math.floor((1 + math.cos(math.pi * t / 200)) / 2 * 101) for t in range(200)]
    for t in (0, 1, 50, 99, 101, 150, 186):
        assert policy.at(t) == TeacherPrefix(expected[t])
    assert (policy.at(0), policy.at(100)) == (TeacherPrefix(101), TeacherPrefix(50))
    assert [policy.at(t) for t in (199, 200, 1000)] == [Student()] * 3


def test_interleaved_reports_the_share_that_the_teacher_replaces() -> None:
    """1 - p(top-K of q): what `blend_mean` averages; 0 where everything is in the top K."""
    assert Interleaved(1, 1.0)(P, Q).diagnostics["blend"].item() == pytest.approx(0.9)
    assert Interleaved(2, 1.0)(P, Q).diagnostics["blend"].item() == pytest.approx(0.6)
    assert Interleaved(3, 1.0)(P, Q).diagnostics["blend"].item() == 0
