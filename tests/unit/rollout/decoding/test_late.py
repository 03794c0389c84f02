"""The host may read what a round has made later: tokens and records stay as they are, and a round waits for nothing."""

from __future__ import annotations

import itertools
import statistics
from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.support.tiny_models import make_model
from tutelage.errors import NonFiniteError
from tutelage.kernels import Judged
from tutelage.models import LanguageModel, align
from tutelage.policies import (
    Behaviour,
    FixedBlend,
    Interleaved,
    Mixture,
    Policy,
    Student,
    Teacher,
    TeacherPrefix,
    Temperature,
    TrustRegion,
)
from tutelage.rollout import Limits, PairedEngine, Request
from tutelage.rollout.decoding import Decoding, DecodingSettings, rounds, streams
from tutelage.rollout.decoding.draft_length import Costs, DraftLength
from tutelage.rollout.decoding.late import HostCopy, Marks, unpacked
from tutelage.types import Prompt, Rollout

pytestmark = pytest.mark.rollouts

PROMPTS = [
    Prompt([1, 2, 3]),
    Prompt([4], teacher_tokens=[8, 4, 4]),
    Prompt([5, 6, 8, 9, 10, 11], teacher_name="other"),
    Prompt([12, 13]),
    Prompt([14, 15], teacher_name="other"),
]


def model(seed: int, device: str = "cpu", stop_ids: tuple[int, ...] = (7,)) -> LanguageModel:
    module = make_model("qwen3", seed=seed, stop_ids=7).to(device)
    return LanguageModel(module, stop_ids=stop_ids, decode_step="eager")


def answers(policy: Policy, draft_length: int | str, max_rows: int, max_new_tokens: int) -> list[Rollout]:
    """Of two teachers, in turns; most answers end by token 7."""
    teachers = {None: model(1), "other": model(2)}
    limits = Limits(max_rows=max_rows)
    engine = PairedEngine(model(0), teachers, draft_length=draft_length, limits=limits, support_size=4)
    return engine.generate(policy, PROMPTS, max_new_tokens=max_new_tokens, num_samples=4, seed=5)


@pytest.mark.parametrize(("max_rows", "max_new_tokens"), [(1, 6), (9, 70), (20, 2)])
@pytest.mark.parametrize(
    ("policy", "draft_length"),
    [(Student(), 1), (TrustRegion(0.1), 1), (TrustRegion(0.1), 3), (FixedBlend(0.5), "auto")],
)
def test_late_or_at_once(
    policy: Policy, draft_length: int | str, max_rows: int, max_new_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that are refilled and dropped; answers to the limit and to a stop token; drafts that are refused."""
    expected = answers(policy, draft_length, max_rows, max_new_tokens)
    assert max_new_tokens < 70 or {rollout.finished for rollout in expected} == {True, False}
    monkeypatch.setattr(rounds, "rounds_late", lambda device: 1 if max_rows > 1 else 2)
    found = answers(policy, draft_length, max_rows, max_new_tokens)
    for one, other in zip(map(asdict, found), map(asdict, expected), strict=True):
        assert one.pop("teacher_name") == other.pop("teacher_name")
        if draft_length == "auto":  # other lengths, so other rounds
            del one["teacher_forwards"], other["teacher_forwards"], one["replaced"], other["replaced"]
        # More slots are visible, so sums are rounded in another way.
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


class AsKernelsJudge(FixedBlend):
    """Judges drafts without looking at whole rows, as the kernels of a GPU do."""

    def __call__(self, student_logits_BV: Tensor, teacher_logits_BV: Tensor | None) -> Behaviour:
        behaviour = super().__call__(student_logits_BV, teacher_logits_BV)
        behaviour.judged = lambda drafts_B, keeps_B: Judged(keeps_B < 0.5, drafts_B)  # type: ignore[method-assign]
        return behaviour


class Launches(TorchDispatchMode):
    """What a device is asked for: how many operations, and which of them the host waits for.

    A meta tensor refuses to be read, so there it is only copies from one device to another that must be found. A list
    or a number that becomes a tensor is sent as well; that is seen on a CPU only.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device, self.count = device, 0
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        devices = {each.device for each in tree_leaves((args, kwargs, result)) if isinstance(each, Tensor)}
        self.count += self.device in devices
        if len(devices) > 1 or "lift_fresh" in str(func):
            self.waits.append(str(func))
        return result


class OneTokenEach(HostCopy):
    """In place of what cannot be read: every row has got a token, and goes on."""

    def wait(self) -> tuple[Tensor, ...]:
        tokens_BL, lengths_B, is_finished_B, is_end_B, produced_B, is_alive_B = (
            torch.zeros(each.shape, dtype=each.dtype) for each in self._tensors
        )
        return tokens_BL, lengths_B + 1, is_finished_B, is_end_B, produced_B, ~is_alive_B


# Most operations beside the models of a round of the student alone, of one with a teacher, for each drafted token more,
# and for the random numbers of the next 64 tokens. Views are counted, which launch nothing.
MOST_ALONE, MOST_WITH_TEACHER, MOST_PER_TOKEN, MOST_FOR_RANDOM_NUMBERS = 140, 215, 80, 200


# With its kernels the trust region is one launch of each, which cannot be seen here; without them it looks at its rows.
@pytest.mark.parametrize("device", ["meta", "cpu"])
@pytest.mark.parametrize(
    ("policy", "length"),
    [
        (Student(), 1),
        (Temperature(0.7), 1),
        *itertools.product(
            (Teacher(), FixedBlend(0.5), Mixture(0.5), Interleaved(4), TeacherPrefix(2), AsKernelsJudge(0.5)), (1, 3)
        ),
    ],
    ids=str,
)
@torch.no_grad()
def test_nothing_in_a_round_waits_for_the_device(
    policy: Policy, length: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Models included; and beside them a round launches a bounded number of operations."""
    monkeypatch.setattr(rounds, "rounds_late", lambda device: 1)
    monkeypatch.setattr(rounds, "HostCopy", OneTokenEach)
    monkeypatch.setattr(streams, "POSITIONS_PER_BLOCK", 4 * length)
    student, teacher = model(0, device), model(1, device, stop_ids=(7, 9))
    draft_length = DraftLength(length, Costs(student, teacher, is_measured=False)) if length > 1 else None
    decoding = Decoding(
        student,
        teacher if policy.needs_teacher else None,
        align(student, teacher),
        policy,
        Request(PROMPTS[:2], max_new_tokens=200, num_samples=4),
        DecodingSettings(num_rows=8, support_size=4, prefill_tokens=100, draft_length=draft_length),
    )
    launches, counts = Launches(student.device), []
    hidden_cached = LanguageModel.hidden_cached

    def uncounted(*args: Any) -> Tensor:
        before = launches.count
        hidden = hidden_cached(*args)
        launches.count = before
        return hidden

    monkeypatch.setattr(LanguageModel, "hidden_cached", uncounted)
    decoding._move_rows()
    decoding._begin_round()
    for _ in range(6):
        launches.count = 0
        with launches:
            decoding._begin_round()
        counts.append(launches.count)
        decoding._read_outcome()
    assert not launches.waits
    most = (MOST_WITH_TEACHER if policy.needs_teacher else MOST_ALONE) + MOST_PER_TOKEN * (length - 1)
    assert statistics.median(counts) <= most
    assert most < max(counts) <= most + MOST_FOR_RANDOM_NUMBERS


def test_a_token_that_cannot_be_drawn_is_refused_a_round_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "rounds_late", lambda device: 1)
    student = model(0)
    student.module.lm_head.weight.data[3] = float("nan")
    with pytest.raises(NonFiniteError, match="no next token at position 0"):
        PairedEngine(student).generate(Student(), PROMPTS, max_new_tokens=4)


def test_what_is_on_a_cpu_is_there() -> None:
    numbers = torch.arange(3)
    assert HostCopy(numbers, numbers > 1).wait()[0] is numbers


def test_columns_are_unpacked_as_they_were() -> None:
    packed = torch.tensor([[5, -1]]), torch.tensor([2]), torch.tensor([True])
    for found, expected in zip(unpacked(torch.column_stack(packed), packed), packed, strict=True):
        assert torch.equal(found, expected) and found.dtype == expected.dtype


def test_times_are_taken_where_they_are_asked_for() -> None:
    marks, unasked = Marks(torch.device("cpu")), Marks(None)
    for each in (marks, unasked):
        for _ in range(3):
            each.add()
    assert len(marks.seconds()) == 2 and min(marks.seconds()) >= 0 and unasked.seconds() == []
