"""What every target keeps, whatever it does. A new member joins by a line in MEMBERS."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.support.quick_run import metrics_of
from tests.support.tiny_run import write_run_file
from tutelage.distributions import arithmetic_blend, geometric_blend, normalise
from tutelage.divergences import DIVERGENCES
from tutelage.errors import ConfigurationError
from tutelage.policies import Student
from tutelage.schedules import Constant, Linear
from tutelage.targets import TARGETS, Bridge, Extrapolated, Proximal, SelfPast, TargetRule, Teacher
from tutelage.training import Recipe
from tutelage.types import Fact

INF = math.inf

MEMBERS: list[TargetRule] = [
    Teacher(),
    Bridge(0.0),
    Bridge(0.5),
    Bridge(1.0, detach=False),
    Extrapolated(0.0),
    Extrapolated(0.4),
    Extrapolated(1.25),
    Proximal(0.0),
    Proximal(0.6),
    Proximal(1.0),
    SelfPast(0.0),
    SelfPast(0.8),
]

# Members with a moving field, each beside what it must be at steps 0, 1 and 2.
MOVING: list[tuple[TargetRule, list[TargetRule]]] = [
    (Bridge(Linear(0.8, 0.0, 2)), [Bridge(0.8), Bridge(0.4), Bridge(0.0)]),
    (Extrapolated(Linear(1.0, 1.5, 2)), [Extrapolated(1.0), Extrapolated(1.25), Extrapolated(1.5)]),
    (Proximal(Linear(0.5, 1.0, 2)), [Proximal(0.5), Proximal(0.75), Proximal(1.0)]),
    (SelfPast(Linear(0.0, 0.8, 2)), [SelfPast(0.0), SelfPast(0.4), SelfPast(0.8)]),
]

# Fields that cannot work, each with the words that must be in the refusal.
IMPOSSIBLE = [
    (Bridge, -0.1, r"^target\.beta is -0\.1; expected 0 or more\. Use 0 for the teacher itself"),
    (Bridge, Linear(0.5, -0.5, 3), r"target\.beta reaches -0\.5; expected 0 or more"),
    (Bridge, math.nan, r"target\.beta is nan; expected a finite number"),
    (Extrapolated, -1, r"target\.reward_scale is -1; expected 0 or more"),
    (Proximal, 1.5, r"target\.weight is 1\.5; expected 0 to 1\. Use 1 for the teacher itself"),
    (Proximal, "1", r"target\.weight is '1'; expected a finite number"),
    (SelfPast, Linear(0.0, 2.0, 3), r"target\.past_weight reaches 2; expected 0 to 1"),
]

# Members under which a token that the teacher rules out stays impossible: products with it. A mixture lets it in.
KEEPS_TEACHER_ZEROS = (Teacher, Bridge)

every_member = pytest.mark.parametrize("target", MEMBERS, ids=repr)


def rows(seed: int = 0, holes: float = 0.0, offset: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities [2, 4, 12] of student, teacher and reference, impossible tokens among them where asked for."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 2, 4, 12, generator=generator, dtype=torch.float64) * 2
    impossible = torch.rand(logits.shape, generator=generator) < holes
    impossible[..., 0] = False
    student, teacher, reference = normalise(logits.masked_fill(impossible, -INF) + offset)
    return student, teacher, reference


def test_every_member_is_here() -> None:
    assert {type(target) for target in MEMBERS} == set(TARGETS.values())


@every_member
@pytest.mark.parametrize("holes", [0.0, 0.3])
def test_is_normalised_on_the_whole_vocabulary(target: TargetRule, holes: float) -> None:
    logprobs = target(*rows(holes=holes))
    torch.testing.assert_close(logprobs.exp().sum(-1), torch.ones(2, 4, dtype=torch.float64))


@every_member
def test_a_common_shift_of_the_logits_changes_nothing(target: TargetRule) -> None:
    torch.testing.assert_close(target(*rows(holes=0.2, offset=500.0)), target(*rows(holes=0.2)), rtol=1e-9, atol=1e-9)


@every_member
def test_the_order_of_the_events_changes_nothing(target: TargetRule) -> None:
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    permuted = target(*(logprobs[..., order] for logprobs in rows(holes=0.2)))
    torch.testing.assert_close(permuted, target(*rows(holes=0.2))[..., order])


@every_member
def test_rows_do_not_influence_each_other(target: TargetRule) -> None:
    parts = rows(holes=0.2)
    together = target(*parts)
    for group in range(2):
        for row in range(4):
            torch.testing.assert_close(target(*(part[group, row] for part in parts)), together[group, row])


@every_member
def test_impossible_tokens_stay_impossible(target: TargetRule) -> None:
    student, teacher, reference = rows(holes=0.4)
    impossible = target(student, teacher, reference) == -INF
    everywhere = (student == -INF) & (teacher == -INF) & (reference == -INF)
    assert everywhere.any() and impossible[everywhere].all()
    if isinstance(target, KEEPS_TEACHER_ZEROS):
        assert impossible[teacher == -INF].all()


@every_member
def test_looks_at_a_third_model_only_if_it_says_so(target: TargetRule) -> None:
    student, teacher, reference = rows()
    if not target.needs:
        assert torch.equal(target(student, teacher), target(student, teacher, reference))
    else:
        assert target.needs in ({Fact.reference}, {Fact.moving_reference})
        with pytest.raises(ConfigurationError, match="got no reference; it compares with a third model"):
            target(student, teacher)


@every_member
def test_equal_models_are_their_own_target_unless_it_sharpens(target: TargetRule) -> None:
    student, _, _ = rows()
    expected = normalise(student * (1 + target.beta)) if isinstance(target, Bridge) else student  # type: ignore[operator]
    torch.testing.assert_close(target(student, student, student), expected)


@every_member
def test_a_partial_sum_is_refused_by_what_normalises(target: TargetRule) -> None:
    divergence = DIVERGENCES["reverse_kl"](rest="truncated")
    parts = [part[..., :5] for part in rows()]  # a support that is not everything
    if target.is_normalised:
        with pytest.raises(ConfigurationError, match=r"divergence\.rest is 'truncated', but the target .* normalised"):
            Recipe(Student(), target, (divergence,))
    else:
        Recipe(Student(), target, (divergence,))
        torch.testing.assert_close(target(*parts), target(*rows())[..., :5])


@every_member
def test_plain_numbers_do_not_move_and_parts_are_frozen(target: TargetRule) -> None:
    assert target.at(0) == target.at(100) == target
    assert hash(target) == hash(dataclasses.replace(target))
    for field in dataclasses.fields(target):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(target, field.name, 1.0)


@pytest.mark.parametrize(("target", "resolved"), MOVING, ids=lambda value: repr(value)[:30])
def test_at_picks_the_step(target: TargetRule, resolved: list[TargetRule]) -> None:
    for step, expected in enumerate(resolved):
        for found, wanted in zip(dataclasses.astuple(target.at(step)), dataclasses.astuple(expected), strict=True):
            assert found == pytest.approx(wanted)
    with pytest.raises(ConfigurationError, match=r"changes with the step; .* Call target\.at\(step\) first"):
        target(*rows())


def test_a_constant_schedule_needs_no_resolving() -> None:
    assert torch.equal(Bridge(Constant(0.5))(*rows()), Bridge(0.5)(*rows()))


@pytest.mark.parametrize(("member", "value", "message"), IMPOSSIBLE)
def test_refuses_impossible_fields_with_the_reason(member: type[TargetRule], value: object, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        member(value)  # type: ignore[call-arg]


STUDENT, TEACHER, REFERENCE = rows()


@pytest.mark.parametrize(
    ("target", "limit"),
    [
        (Bridge(0.0), TEACHER),
        (Extrapolated(0.0), REFERENCE),
        (Extrapolated(1.0), TEACHER),
        (Extrapolated(0.3), geometric_blend(REFERENCE, TEACHER, 0.3)),
        (Proximal(0.0), STUDENT),
        (Proximal(1.0), TEACHER),
        (SelfPast(0.0), TEACHER),
        (SelfPast(1.0), REFERENCE),
    ],
    ids=repr,
)
def test_limits(target: TargetRule, limit: Tensor) -> None:
    found = target(STUDENT, TEACHER, REFERENCE)
    torch.testing.assert_close(found, limit)
    if target not in (Extrapolated(0.3),):
        assert torch.equal(found, limit), "at its ends a target is the model itself, bit for bit"


# --- a member of one's own: a class, and a line in a table ------------------------------------------------------------


@dataclass(frozen=True)
class Nearer(TargetRule):
    """(1 - w) p + w q"""

    share: float

    def __call__(
        self, student_logprobs: Tensor, teacher_logprobs: Tensor, reference_logprobs: Tensor | None = None
    ) -> Tensor:
        return arithmetic_blend(student_logprobs, teacher_logprobs, self.share)


@pytest.mark.runs
def test_a_member_of_ones_own_is_found_by_name_and_imitated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run learns from it what it learns from the library's mixture, and not what it learns from the teacher."""
    monkeypatch.setitem(TARGETS, "nearer", Nearer)
    path = write_run_file(tmp_path, steps=2)
    losses = {
        name: [step["loss"] for step in metrics_of(path, tmp_path / name, "policy=student", f"target={table}")]
        for name, table in {
            "ours": "{name='nearer',share=0.3}",
            "theirs": "{name='proximal',weight=0.3}",
            "plain": "teacher",
        }.items()
    }
    assert losses["ours"] == losses["theirs"] != losses["plain"]
