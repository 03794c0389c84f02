"""Answers that are changed where student and teacher differ most, against plain forwards of both."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from tests.support.rollouts import rollout_of
from tests.support.scored_answers import scored
from tests.support.tiny_models import make_model
from tutelage.errors import ConfigurationError
from tutelage.models import LanguageModel
from tutelage.policies import Intervention, Student
from tutelage.rollout import EditingEngine, PairedEngine, Request
from tutelage.rollout.engines import editing as editing_module
from tutelage.types import Batch, Prompt
from tutelage.weighting import recorded_kl

LIMIT = 12
PROMPTS = [Prompt([1, 2, 3]), Prompt([4], teacher_tokens=[9, 10]), Prompt([5, 6])]
REQUEST = Request(PROMPTS, LIMIT, num_samples=4, seed=5)


@pytest.fixture(scope="module")
def paired() -> PairedEngine:
    student = make_model("qwen3", vocab_size=24, stop_ids=7, seed=1)
    return PairedEngine(student, make_model("llama", vocab_size=28, stop_ids=[7, 8], seed=2), support_size=3)


def editing(paired: PairedEngine) -> EditingEngine:
    return EditingEngine(paired.models, paired, support_size=3)


def logprobs(paired: PairedEngine, model: LanguageModel, prompt: list[int], response: list[int]) -> torch.Tensor:
    """Naively: [T, V]."""
    with torch.no_grad():
        logits = model.module(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
    return paired.models.vocabulary.shared_logits(logits).log_softmax(-1)


def test_one_token_is_the_teachers_and_what_stands_before_it_stays(paired: PairedEngine) -> None:
    drawn, made = paired.answer(Student(), REQUEST), editing(paired).answer(Intervention(), REQUEST)
    places = set()
    for before, after, read in zip(drawn, made, scored(paired.models, drawn), strict=True):
        at = int(recorded_kl(Batch([read]), reverse=True).argmax())
        places.add(at)
        old, new = before.response_tokens, after.response_tokens
        teacher = paired.models.teacher
        assert teacher is not None
        favourite = int(logprobs(paired, teacher, before.tokens_for_teacher, old)[at].argmax())
        assert new[:at] == old[:at] and new[at] == favourite
        assert (after.prompt_index, after.sample_index) == (before.prompt_index, before.sample_index)
        assert after.tokens_for_teacher == before.tokens_for_teacher
        assert len(new) <= LIMIT and after.finished == (new[-1] == paired.models.vocabulary.stop_id)
        assert after.finished or len(new) == LIMIT
        expected = logprobs(paired, paired.models.student, after.prompt_tokens, new)
        chosen = expected.gather(-1, torch.tensor(new)[:, None])[:, 0]
        torch.testing.assert_close(after.student_logprobs, chosen, rtol=1e-4, atol=1e-5)
        assert after.blend is not None and after.kl_to_student is not None
        assert after.blend.nonzero()[:, 0].tolist() == [at] and after.behaviour_logprobs[at] == 0
        assert after.kl_to_student[at] == -after.student_logprobs[at] and after.kl_to_student.count_nonzero() == 1
        others = torch.arange(len(new)) != at
        assert torch.equal(after.behaviour_logprobs[others], after.student_logprobs[others])
    assert len(places) > 3


def test_what_follows_is_drawn_anew_and_from_the_student(paired: PairedEngine) -> None:
    """The same answer continued by plain sampling from the changed beginning has the same law: tokens of its own."""
    drawn = paired.answer(Student(), REQUEST)
    made = editing(paired).answer(Intervention(token="student"), REQUEST)
    new_tails = 0
    for before, after, read in zip(drawn, made, scored(paired.models, drawn), strict=True):
        at = int(recorded_kl(Batch([read]), reverse=True).argmax())
        assert after.response_tokens[: at + 1] == before.response_tokens[: at + 1]
        assert after.blend is not None and not after.blend.any()
        new_tails += after.response_tokens[at + 1 :] != before.response_tokens[at + 1 :]
    assert new_tails > len(drawn) / 2


def test_later_rounds_change_later_places(paired: PairedEngine) -> None:
    made = editing(paired).answer(Intervention(rounds=3), REQUEST)
    counts = {int(rollout.blend.sum()) for rollout in made if rollout.blend is not None}
    assert max(counts) == 3 and {rollout.teacher_forwards for rollout in made} == {3}
    one = editing(paired).answer(Intervention(), REQUEST)
    for first, last in zip(one, made, strict=True):
        assert first.blend is not None
        at = int(first.blend.argmax())
        assert last.response_tokens[: at + 1] == first.response_tokens[: at + 1]


def test_neither_batching_nor_company_changes_an_answer(paired: PairedEngine) -> None:
    whole = editing(paired).answer(Intervention(rounds=2), REQUEST)
    alone = replace(REQUEST, prompts=[replace(PROMPTS[1], stream=1)])
    own = editing(paired).answer(Intervention(rounds=2), alone)
    assert [each.response_tokens for each in own] == [each.response_tokens for each in whole[4:8]]


def test_a_context_that_is_full_is_not_left(paired: PairedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beginnings are continued with the room of the one that has most; where that is too much, apart."""
    made = editing(paired).answer(Intervention(), REQUEST)
    limited = type("Limit", (int,), {"remark": "", "made_for": None})(3 + LIMIT)
    monkeypatch.setattr(type(paired.models.student), "context_length", limited)
    again = editing(paired).answer(Intervention(), REQUEST)
    assert [each.response_tokens for each in again] == [each.response_tokens for each in made]


def test_models_that_agree_leave_the_answer_as_it_is() -> None:
    student = make_model("qwen3", vocab_size=24, stop_ids=7, seed=1)
    paired = PairedEngine(student, make_model("qwen3", vocab_size=24, stop_ids=7, seed=1))
    request = replace(REQUEST, prompts=[PROMPTS[0], PROMPTS[2]])
    made, drawn = editing(paired).answer(Intervention(), request), paired.answer(Student(), request)
    assert [each.response_tokens for each in made] == [each.response_tokens for each in drawn]
    assert all(each.blend is not None and not each.blend.any() for each in made)


def test_the_score_of_a_place() -> None:
    """P = (.6, .3, .1) and (.2, .7, .1), Q = (.5, .4, .1) and (.9, .05, .05); a coarser support never finds more."""
    student, teacher = torch.tensor([[[0.6, 0.3, 0.1], [0.2, 0.7, 0.1]], [[0.5, 0.4, 0.1], [0.9, 0.05, 0.05]]]).double()
    for size, expected in ((3, [0.0231, 1.6158]), (1, [0.0201, 1.5015])):
        ids = student.topk(size).indices
        kept = teacher.gather(1, ids)
        zeros = torch.zeros(2)
        fields = {
            "student.support_logprobs_TK": student.gather(1, ids).log(),
            "teacher.logprobs_T": zeros,
            "teacher.support_logprobs_TK": kept.log(),
            "teacher.tail_logprobs_T": (1 - kept.sum(1)).log() if size < 3 else torch.full((2,), -math.inf),
        }
        found = recorded_kl(Batch([rollout_of([0], [0, 0], zeros, zeros, fields)]), reverse=True)
        assert found.tolist() == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize("at", ["first of equals", "last place"])
def test_where_an_answer_is_changed(paired: PairedEngine, at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of equally large divergences the first; and after the last place there is no room for anything."""
    drawn = paired.answer(Student(), REQUEST)
    assert {len(each) == LIMIT for each in drawn} == {True, False}

    def chosen(batch: Batch, **_: object) -> torch.Tensor:
        kl_N = torch.zeros(batch.num_tokens)
        places_N = batch.positions_N
        kl_N[(places_N == 1) | (places_N == 3) if at == "first of equals" else places_N == LIMIT - 1] = 2.0
        return kl_N

    monkeypatch.setattr(editing_module, "recorded_kl", chosen)
    made = editing(paired).answer(Intervention(), REQUEST)
    for before, after in zip(drawn, made, strict=True):
        assert after.blend is not None
        if at == "first of equals":
            assert after.blend.nonzero()[:, 0].tolist() == ([1] if len(before) > 1 else [])
        elif len(before) == LIMIT:
            assert len(after) == LIMIT and after.blend.nonzero()[:, 0].tolist() == [LIMIT - 1]
            assert after.response_tokens[:-1] == before.response_tokens[:-1]
        else:
            assert after.response_tokens == before.response_tokens


def test_an_infinite_divergence_is_the_largest() -> None:
    """Where the student has mass on what the teacher never says; in a weight it would become the largest finite one."""
    student, teacher = (
        torch.tensor([[0.5, 0.3], [0.2, 0.7], [0.3, 0.2]]),
        torch.tensor([[0.5, 0.3], [0.1, 0.7], [0.6, 0.4]]),
    )
    fields = {
        "student.support_logprobs_TK": student.log(),
        "teacher.logprobs_T": torch.zeros(3),
        "teacher.support_logprobs_TK": teacher.log(),
        "teacher.tail_logprobs_T": torch.tensor([0.2, 0.2, 0.0]).log(),
    }
    batch = Batch([rollout_of([0], [0] * 3, torch.zeros(3), torch.zeros(3), fields)])
    equal, some, infinite = recorded_kl(batch, reverse=True, finite=False).tolist()
    assert equal == pytest.approx(0, abs=1e-6) and 0 < some < 1 and infinite == math.inf
    assert recorded_kl(batch, reverse=True).tolist() == pytest.approx([0, some, some], abs=1e-6)


def test_who_cannot_serve_it_says_so(paired: PairedEngine) -> None:
    with pytest.raises(ConfigurationError, match="changes finished answers, and this engine draws tokens one by one"):
        paired.generate(Intervention(), [[1]], max_new_tokens=2)
    refusal = editing(paired).refusal(Student())
    assert refusal is not None and "changes no finished answers" in refusal
    with pytest.raises(ConfigurationError, match="no distribution of a next token"):
        Intervention()(torch.zeros(1, 3))
    for fields, message in (
        ({"rounds": 0}, r"policy\.rounds is 0; expected at least 1"),
        ({"token": "best"}, r"policy\.token is 'best'; expected one of teacher, student"),
        ({"min_divergence": -1.0}, r"policy\.min_divergence is -1"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            Intervention(**fields)
