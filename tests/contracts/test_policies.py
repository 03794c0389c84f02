"""What every policy keeps, whatever it does. A new member joins by a line in MEMBERS."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.quick_run import metrics_of
from tests.support.tiny_run import write_run_file
from tutelage.distributions import arithmetic_blend, normalise, sample
from tutelage.errors import ConfigurationError
from tutelage.kernels import reference
from tutelage.policies import (
    POLICIES,
    Behaviour,
    FixedBlend,
    Interleaved,
    Intervention,
    Mixture,
    Offline,
    Policy,
    Softmax,
    Student,
    Teacher,
    TeacherPrefix,
    Temperature,
    TrustRegion,
)
from tutelage.rollout.decoding.drafts import judge_drafts
from tutelage.schedules import Constant, Cosine, Linear

INF = math.inf

MEMBERS: list[Policy] = [
    Student(),
    Teacher(),
    TrustRegion(0.0),
    TrustRegion(0.001),
    TrustRegion(0.05),
    TrustRegion(1e6),
    FixedBlend(0.0),
    FixedBlend(0.3),
    Mixture(0.0),
    Mixture(0.3),
    Mixture(1.0),
    Interleaved(1, 0.0),
    Interleaved(3, 0.2),
    Interleaved(12, 1.0),
    Temperature(0.0),
    Temperature(0.8),
    Temperature(1.3),
    TeacherPrefix(0),
    TeacherPrefix(2),
]

# Members with a moving field, each beside what it must be at steps 0, 1, 2 and 3.
MOVING: list[tuple[Policy, list[Policy]]] = [
    (
        TrustRegion(Linear(0.04, 0.0, 2)),
        [TrustRegion(0.04), TrustRegion(0.02), Student(), Student()],
    ),
    (
        Temperature(Linear(0.8, 1.0, 2)),
        [Temperature(0.8), Temperature(0.9), Student(), Student()],
    ),
    (
        FixedBlend(Linear(0.4, 0.0, 2)),
        [FixedBlend(0.4), FixedBlend(0.2), Student(), Student()],
    ),
    (
        Mixture(Linear(0.4, 0.0, 2)),
        [Mixture(0.4), Mixture(0.2), Student(), Student()],
    ),
    (
        Interleaved(5, Linear(0.5, 1.0, 2)),
        [Interleaved(5, 0.5), Interleaved(5, 0.75), Interleaved(5, 1.0), Interleaved(5, 1.0)],
    ),
    (
        Interleaved(Linear(5, 1, 4)),
        [Interleaved(5), Interleaved(4), Interleaved(3), Interleaved(2)],
    ),
    (
        TeacherPrefix(Cosine(5.0, 0.0, 2)),
        [TeacherPrefix(5), TeacherPrefix(2), Student(), Student()],
    ),
    (TrustRegion(Constant(0.01)), [TrustRegion(0.01)] * 4),
]

# Fields that cannot work, each with the words that must be in the refusal.
IMPOSSIBLE = [
    (
        TrustRegion,
        -0.1,
        r"^policy\.kl_radius is -0\.1; a KL radius cannot be negative\. Use 0 for pure student rollouts\.$",
    ),
    (TrustRegion, Linear(0.1, -0.1, 5), r"policy\.kl_radius reaches -0\.1; a KL radius cannot be negative"),
    (TrustRegion, math.nan, r"policy\.kl_radius is nan; expected a finite number"),
    (TrustRegion, "0.1", r"policy\.kl_radius is '0\.1'; expected a finite number"),
    (Temperature, -1, r"policy\.temperature is -1; a temperature cannot be negative\. Use 0 for greedy decoding"),
    (Temperature, Linear(1, -1, 5), r"policy\.temperature reaches -1; a temperature cannot be negative"),
    (FixedBlend, -0.1, r"policy\.blend is -0\.1; a share cannot be negative\. Use 0 for the student itself"),
    (FixedBlend, 1.5, r"policy\.blend is 1\.5; a share is at most 1\. Use 1 for the teacher itself"),
    (Mixture, Linear(0.5, 1.5, 3), r"policy\.weight reaches 1\.5; a share is at most 1"),
    (Interleaved, 0, r"policy\.top_k is 0; expected a whole number of at least 1"),
    (Interleaved, 2.5, r"policy\.top_k is 2\.5; expected a whole number of at least 1"),
    (Interleaved, Linear(5, 0, 3), r"policy\.top_k is Linear.*; expected a whole number of at least 1"),
    (TeacherPrefix, -1, r"policy\.num_tokens is -1; a count cannot be negative\. Use 0 for the student\.$"),
    (TeacherPrefix, Linear(8, -8, 4), r"policy\.num_tokens reaches -8; a count cannot be negative"),
    (Temperature, None, r"policy\.temperature is None; expected a finite number"),
]

# Members whose tokens stay impossible if the student, or the teacher where it has a share, says so.
KEEPS_STUDENT_ZEROS = (Student, Temperature, TrustRegion, FixedBlend)
KEEPS_TEACHER_ZEROS = (Teacher, TrustRegion, FixedBlend, TeacherPrefix)

every_member = pytest.mark.parametrize("policy", MEMBERS, ids=repr)


def rows(seed: int = 0, holes: float = 0.0) -> tuple[Tensor, Tensor]:
    """Student and teacher logits [2, 4, 12] without ties, with impossible tokens where asked for."""
    generator = torch.Generator().manual_seed(seed)
    student, noise = torch.randn(2, 2, 4, 12, generator=generator) * 2
    teacher = student / 2 + noise
    for logits in (student, teacher):
        impossible = torch.rand(logits.shape, generator=generator) < holes
        impossible[..., 0] = False
        logits.masked_fill_(impossible, -INF)
    return student, teacher


def propose(policy: Policy, student: Tensor, teacher: Tensor) -> Tensor:
    return policy(student, teacher).logprobs_BV


def test_every_member_is_here() -> None:
    assert {type(policy) for policy in MEMBERS} | {Offline, Intervention} == set(POLICIES.values())  # pick no token


@every_member
@pytest.mark.parametrize("holes", [0.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_rows_are_distributions(policy: Policy, holes: float, dtype: torch.dtype) -> None:
    student, teacher = (logits.to(dtype) for logits in rows(holes=holes))
    logprobs = propose(policy, student, teacher)
    assert logprobs.shape == student.shape
    assert logprobs.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(logprobs.exp().sum(-1), torch.ones(2, 4, dtype=logprobs.dtype), rtol=0, atol=2e-6)


@every_member
def test_a_common_shift_of_the_logits_changes_nothing(policy: Policy) -> None:
    student, teacher = (logits.double() for logits in rows(holes=0.2))
    shifted = propose(policy, student + 1000, teacher - 3000)
    torch.testing.assert_close(shifted, propose(policy, student, teacher), rtol=1e-5, atol=1e-5)


@every_member
def test_the_order_of_the_vocabulary_changes_nothing(policy: Policy) -> None:
    student, teacher = rows(holes=0.2)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    permuted = propose(policy, student[..., order], teacher[..., order])
    torch.testing.assert_close(permuted, propose(policy, student, teacher)[..., order], rtol=1e-5, atol=1e-5)


@every_member
def test_places_matter_only_to_a_policy_that_asks_for_them(policy: Policy) -> None:
    student, teacher = rows(holes=0.2)
    places = torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0]])
    proposed, called = policy.propose(student, teacher, places).logprobs_BV, propose(policy, student, teacher)
    if isinstance(policy, TeacherPrefix):
        guided = places < policy.num_tokens
        assert torch.equal(proposed[guided], normalise(teacher)[guided])
        assert torch.equal(proposed[~guided], normalise(student)[~guided])
        assert torch.equal(called, policy.propose(student, teacher, torch.zeros(2, 4)).logprobs_BV)
    else:
        assert torch.equal(proposed, called)


@every_member
def test_rows_do_not_influence_each_other(policy: Policy) -> None:
    student, teacher = rows(holes=0.2)
    together = propose(policy, student, teacher)
    for group in range(2):
        for row in range(4):
            alone = propose(policy, student[group, row], teacher[group, row])
            torch.testing.assert_close(alone, together[group, row], rtol=0, atol=1e-6)


@every_member
def test_impossible_tokens_stay_impossible(policy: Policy) -> None:
    student, teacher = rows(holes=0.3)
    behaviour = policy(student, teacher)
    impossible = behaviour.logprobs_BV == -INF
    assert impossible[(student == -INF) & (teacher == -INF)].all()
    if isinstance(policy, KEEPS_STUDENT_ZEROS):
        assert impossible[student == -INF].all()
    if isinstance(policy, KEEPS_TEACHER_ZEROS):
        share = behaviour.diagnostics.get("blend", torch.zeros(2, 4))
        assert impossible[(teacher == -INF) & (share > 0).unsqueeze(-1)].all()


@every_member
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_rows_that_are_never_whole_say_and_draw_the_same(
    policy: Policy, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few numbers per row, a row at a time, against whole rows: probabilities, draws, verdicts and diagnostics."""
    student, teacher = (logits.to(dtype) for logits in rows(holes=0.2))
    generator = torch.Generator().manual_seed(1)
    uniforms, keeps = torch.rand(2, *student.shape[:-1], generator=generator, dtype=torch.float64)
    drafts = sample(student, uniforms)
    places = torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0]])
    found = []
    for entries in (2**18, 1):
        monkeypatch.setattr(reference, "PIECE_ENTRIES_CPU", entries)
        behaviour = policy.propose(student, teacher, places)
        drawn = behaviour.draw(uniforms)
        verdict = judge_drafts(Softmax(student), policy.propose(student, teacher, places), drafts, keeps)
        index = (torch.tensor([1, 0, 1]), torch.tensor([0, 3, 2]))
        values = [behaviour.logprobs_of(drawn), behaviour.logprobs_of(drafts), behaviour.rows(index)]
        found.append((drawn, verdict, values, behaviour.diagnostics))
    (drawn, verdict, values, diagnostics), (drawn_apart, verdict_apart, values_apart, diagnostics_apart) = found
    assert torch.equal(drawn, drawn_apart)
    assert all(map(torch.equal, verdict, verdict_apart))
    for one, other in zip(values, values_apart, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-5)
    assert diagnostics.keys() == diagnostics_apart.keys()
    for name, value in diagnostics.items():
        assert value.dtype == diagnostics_apart[name].dtype
        torch.testing.assert_close(value, diagnostics_apart[name], rtol=1e-5, atol=1e-6)


@every_member
def test_judging_makes_no_tensor_of_all_rows(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    """But of the student's log-probabilities, which are recorded anyway."""
    student, teacher = (torch.randn(4, 8, 500, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    monkeypatch.setattr(reference, "PIECE_ENTRIES_CPU", 500)
    p = Softmax(student)
    drafts = sample(p.logprobs_BV, torch.rand(4, 8, generator=torch.Generator().manual_seed(2)).double())
    behaviour = policy.propose(student, teacher, torch.arange(8).expand(4, 8))
    with LargestTensor() as largest:
        verdict = judge_drafts(p, behaviour, drafts, torch.full((4, 8), 0.99).double())
    assert largest.num_entries <= (student.numel() if isinstance(behaviour, Softmax) else 500)
    assert verdict.replaced_BL.any() or policy.at(0) == Student()


class LargestTensor(TorchDispatchMode):
    """Entries of the largest tensor that was computed, views of older ones apart."""

    num_entries = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor) and made._base is None and not func.is_view:
            self.num_entries = max(self.num_entries, made.numel())
        return made


@every_member
def test_the_student_beside_mu_is_that_of_its_logits(policy: Policy) -> None:
    """Bit for bit, whether mu has made its rows before or not; and of other logits if these are asked for."""
    (student, teacher), index = rows(holes=0.2), (torch.tensor([1, 0]), torch.tensor([3, 2]))
    behaviour = policy.propose(student, teacher)
    for _ in range(2):
        p = behaviour.student(student)
        assert torch.equal(p.rows(index), normalise(student[index])), "rows"
        behaviour.draw(torch.full((2, 4), 0.5, dtype=torch.float64))
    assert torch.equal(p.logprobs_BV, normalise(student))
    assert torch.equal(behaviour.student(teacher).logprobs_BV, normalise(teacher))


@every_member
def test_looks_at_the_teacher_only_if_it_says_so(policy: Policy) -> None:
    student, teacher = rows()
    if policy.needs_teacher:
        with pytest.raises(ConfigurationError, match="got no teacher logits"):
            policy(student, None)
    else:
        assert torch.equal(propose(policy, student, teacher), policy(student, None).logprobs_BV)


@every_member
def test_diagnostics_have_one_value_per_row(policy: Policy) -> None:
    student, teacher = rows(holes=0.2)
    for name, value in policy(student, teacher).diagnostics.items():
        assert value.shape == (2, 4), name
        assert not value.isnan().any(), name


@every_member
def test_changes_neither_its_inputs_nor_itself(policy: Policy) -> None:
    student, teacher = rows(holes=0.2)
    before = student.clone(), teacher.clone(), dataclasses.replace(policy)
    first = propose(policy, student, teacher)
    assert torch.equal(first, propose(policy, student, teacher))
    assert torch.equal(student, before[0]) and torch.equal(teacher, before[1]) and policy == before[2]


@every_member
def test_plain_numbers_do_not_move(policy: Policy) -> None:
    student, teacher = rows()
    for step in (0, 100):
        resolved = policy.at(step)
        assert resolved.at(step) == resolved
        assert torch.equal(propose(resolved, student, teacher), propose(policy, student, teacher))


@every_member
def test_is_frozen_and_hashable(policy: Policy) -> None:
    assert hash(policy) == hash(dataclasses.replace(policy))
    for field in dataclasses.fields(policy):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(policy, field.name, 1.0)


@pytest.mark.parametrize(
    ("policy", "resolved"), MOVING, ids=lambda value: repr(value) if isinstance(value, Policy) else ""
)
def test_at_picks_the_step(policy: Policy, resolved: list[Policy]) -> None:
    for step, expected in enumerate(resolved):
        assert policy.at(step) == expected
        assert policy.at(step).at(3) == expected
    assert policy.needs_teacher == any(expected.needs_teacher for expected in resolved)


@pytest.mark.parametrize("policy", [moving for moving, _ in MOVING[:2]], ids=repr)
def test_a_moving_field_must_be_resolved_before_the_call(policy: Policy) -> None:
    with pytest.raises(ConfigurationError, match=r"changes with the step; .* Call policy\.at\(step\) first"):
        policy(*rows())


@pytest.mark.parametrize(("member", "value", "message"), IMPOSSIBLE)
def test_refuses_impossible_fields_with_the_reason(member: type[Policy], value: object, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        member(value)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("policy", "limit"),
    [
        (TrustRegion(0.0), Student()),
        (TrustRegion(1e-30), Student()),
        (TrustRegion(1e6), Teacher()),
        (FixedBlend(1.0), Teacher()),
        (FixedBlend(1e-9), Student()),
        (Mixture(1.0), Teacher()),
        (Mixture(1e-9), Student()),
        (Interleaved(12, 0.5), Student()),
        (TeacherPrefix(1), Teacher()),
        (TeacherPrefix(0.9), Student()),
        (Temperature(1.0), Student()),
        (Temperature(1e-6), Temperature(0.0)),
    ],
    ids=repr,
)
def test_limits(policy: Policy, limit: Policy) -> None:
    student, teacher = rows()
    probs, limit_probs = propose(policy, student, teacher).exp(), propose(limit, student, teacher).exp()
    torch.testing.assert_close(probs, limit_probs, rtol=0, atol=1e-6)


def test_interleaved_is_the_law_of_its_procedure() -> None:
    """The worked example of arXiv 2410.11325's rule: q = (.5, .3, .2), p = (.1, .2, .7), K = 2, temperature 1."""
    student, teacher = torch.tensor([0.1, 0.2, 0.7]).log(), torch.tensor([0.5, 0.3, 0.2]).log()
    behaviour = Interleaved(2, 1.0)(student, teacher)
    torch.testing.assert_close(behaviour.logprobs_BV.exp(), torch.tensor([0.45, 0.41, 0.14]))
    torch.testing.assert_close(behaviour.diagnostics["blend"], torch.tensor(0.7))


def test_interleaved_with_one_greedy_token_is_the_teachers_greedy_path() -> None:
    student, teacher = rows(holes=0.2)
    assert torch.equal(propose(Interleaved(1, 0.0), student, teacher).argmax(-1), teacher.argmax(-1))


def test_student_and_teacher_are_what_their_names_say() -> None:
    student, teacher = rows(holes=0.2)
    assert torch.equal(propose(Student(), student, teacher), normalise(student))
    assert torch.equal(propose(Teacher(), student, teacher), normalise(teacher))


# --- a member of one's own: a class, and a line in a table ------------------------------------------------------------


@dataclass(frozen=True)
class Halves(Policy):
    """mu = (1 - w) p + w q"""

    share: float

    @property
    def needs_teacher(self) -> bool:
        return True

    def __call__(self, student_logits_BV: Tensor, teacher_logits_BV: Tensor | None) -> Behaviour:
        assert teacher_logits_BV is not None
        student_BV, teacher_BV = normalise(student_logits_BV), normalise(teacher_logits_BV)
        return Behaviour(arithmetic_blend(student_BV, teacher_BV, self.share))


@pytest.mark.runs
def test_a_member_of_ones_own_is_found_by_name_and_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It draws in a run what the library's mixture draws."""
    monkeypatch.setitem(POLICIES, "halves", Halves)
    path = write_run_file(tmp_path, steps=1)
    ours = metrics_of(path, tmp_path / "ours", "policy={name='halves',share=0.3}")
    theirs = metrics_of(path, tmp_path / "theirs", "policy={name='mixture',weight=0.3}")
    assert [step["share"] for step in ours] == [0.3]
    for name in ("loss", "response_tokens", "teacher_logprob", "acceptance_rate"):
        assert [step[name] for step in ours] == [step[name] for step in theirs], name
