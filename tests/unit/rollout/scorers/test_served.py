"""A served teacher: its scores are those of the same model here, and a server that is no teacher is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.support.fake_server import Answer, Fake, vllm_of
from tests.support.rollouts import rollout_of
from tests.support.tiny_models import pair
from tutelage.distributions import normalise, tail_logprobs
from tutelage.errors import ServerError
from tutelage.models import Vocabulary
from tutelage.policies import Student
from tutelage.rollout import PairedEngine, ServedScorer, Server
from tutelage.rollout.reading import response_hidden
from tutelage.types import Prompt


def test_a_served_teacher_tells_what_a_local_one_would(play: Callable[[Answer], Fake]) -> None:
    """Its own top K after every token, both stop ids as one event, and the sampled tokens' log-probabilities."""
    models = pair()
    teacher, vocabulary = models.teachers[None], models.vocabulary
    local = PairedEngine(models.student, teacher, vocabulary=vocabulary, support_size=4)
    rollouts = local.generate(
        Student(), [Prompt([1, 2], teacher_tokens=[3, 1, 2]), Prompt([4])], max_new_tokens=12, num_samples=6
    )
    fake = play(vllm_of(teacher))
    served = ServedScorer(Server(fake.url, most_at_once=1), vocabulary, 5)
    assert any(r.finished for r in rollouts)
    for told, known in zip(served.score(rollouts), local.score(rollouts), strict=True):
        assert told.is_scored and told.teacher.top.support_ids is not None and told.teacher_logprobs is not None
        hidden = response_hidden(teacher, [(known.tokens_for_teacher, known.response_tokens)])
        shared = normalise(vocabulary.shared_logits(teacher.logits(hidden))).detach()
        top = shared.topk(5, dim=-1)
        # A stop id that is not among the six told stays in the tail; the event's other id is then all of it.
        is_whole = (told.teacher.top.support_ids.long() == top.indices).all(-1)
        assert is_whole.float().mean() > 0.8
        whole = is_whole & ~(top.indices == 7).any(-1)
        torch.testing.assert_close(told.teacher.top.logprobs[whole].double(), top.values[whole], atol=1e-5, rtol=0)
        tails = tail_logprobs(shared, top.indices)
        torch.testing.assert_close(told.teacher.top.tail_logprobs[whole].double(), tails[whole], atol=1e-4, rtol=0)
        ordinary = torch.tensor(known.response_tokens) != 7
        assert known.teacher_logprobs is not None
        torch.testing.assert_close(
            told.teacher_logprobs[ordinary].double(), known.teacher_logprobs[ordinary], atol=1e-5, rtol=0
        )


def test_stop_ids_that_are_told_are_one_event_and_padding_is_none(play: Callable[[Answer], Fake]) -> None:
    vocabulary = Vocabulary(20, (7, 8), 7, (3,))
    # Of 32 rows 20 are tokens; the last place's tail is lost in rounding.
    places = [None, {"8": 0.5, "7": 0.25, "1": 0.125, "3": 0.0625, "25": 0.03}]
    places += [{"8": 0.6, "1": 0.3, "2": 0.1, "4": 1e-12}]
    told = [p and {i: {"logprob": math.log(mass)} for i, mass in p.items()} for p in places]
    rollout = rollout_of([4], [1, 1], torch.zeros(2), torch.zeros(2))
    answers = {"/v1/models": {"data": [{"id": "m"}]}, "/v1/completions": {"choices": [{"prompt_logprobs": told}]}}
    fake = play(lambda path, _: (200, answers[path]))
    [scored] = ServedScorer(Server(fake.url), vocabulary, 3, num_rows=32).score([rollout])
    assert scored.teacher.top.support_ids is not None and scored.teacher.top.logprobs is not None
    assert scored.teacher.top.support_ids.tolist() == [[7, 1, 7], [7, 1, 2]]
    expected = torch.tensor([[0.75, 0.125, 0.0], [0.6, 0.3, 0.1]])
    torch.testing.assert_close(scored.teacher.top.logprobs.exp(), expected)
    assert scored.teacher.top.tail_logprobs is not None
    assert scored.teacher.top.tail_logprobs.exp().tolist() == pytest.approx([0.125, 2**-24], rel=1e-3)


def test_a_server_that_is_no_teacher_is_refused(play: Callable[[Answer], Fake]) -> None:
    models = pair()
    teacher, vocabulary = models.teachers[None], models.vocabulary
    rollout = rollout_of([4], [1, 1], torch.zeros(2), torch.zeros(2))
    listed = {"data": [{"id": "m"}]}
    plain = play(lambda path, _: (200, listed if path == "/v1/models" else {"choices": [{"text": ""}]}))
    with pytest.raises(ServerError, match="log-probabilities of 0 tokens of a prompt of 3"):
        ServedScorer(Server(plain.url), vocabulary, 4).score([rollout])
    with pytest.raises(ServerError, match="serves no model"):
        ServedScorer(Server(play(lambda *_: (200, {"data": []})).url), vocabulary, 4).score([rollout])
    short = ServedScorer(Server(play(vllm_of(teacher)).url), vocabulary, 4)
    short.check([1, 2], 63)
    with pytest.raises(ServerError, match="may have 64 tokens, and .* reads 64 less the one"):
        short.check([1, 2], 64)


def test_a_teacher_server_is_compared_before_the_first_step(play: Callable[[Answer], Fake]) -> None:
    """One short prompt, sent twice: with the last id of the vocabulary, and the same tokens for a text."""
    models = pair()
    teacher, vocabulary = models.teachers[None], models.vocabulary
    honest = vllm_of(teacher)
    fake = play(honest)
    served = ServedScorer(Server(fake.url), vocabulary, 4)
    assert served.check([1, 2, 8, 4], 20).name == "m"
    prompts = [body["prompt"] for path, body in fake.asked if path == "/v1/completions"]
    assert prompts == [[1, 2, 8, 4, 19]] * 2
    served.check([1] * 50, 63)
    assert len(fake.asked[-1][1]["prompt"]) == 32

    def cut_into(tokens: Any) -> Answer:
        return lambda path, body: (200, tokens) if path == "/tokenize" else honest(path, body)

    for told in ({"tokens": [5, 6]}, {"count": 2}, None):  # the same, and servers that do not tell
        ServedScorer(Server(play(cut_into(told)).url), vocabulary, 4).check([1, 2], 20, ("text", [5, 6]))
    with pytest.raises(ServerError, match=r"cuts a text into other tokens than teacher\.path's tokenizer"):
        ServedScorer(Server(play(cut_into({"tokens": [5, 7]})).url, key="teacher.server"), vocabulary, 4).check(
            [1], 20, ("text", [5, 6])
        )


def test_a_server_without_the_route_for_texts_is_no_other_server(play: Callable[[Answer], Fake]) -> None:
    models = pair()
    teacher, vocabulary = models.teachers[None], models.vocabulary
    honest = vllm_of(teacher)
    fake = play(lambda path, body: (404, {}) if path == "/tokenize" else honest(path, body))
    ServedScorer(Server(fake.url), vocabulary, 4).check([1, 2], 20, ("text", [5, 6]))


def test_two_models_at_one_address_are_noticed(play: Callable[[Answer], Fake]) -> None:
    models = pair()
    both = [vllm_of(models.student), vllm_of(models.teachers[None])]
    fake = play(lambda path, body: both[len(fake.asked) % 2](path, body))
    with pytest.raises(ServerError, match=r"was asked the same twice, and its log-probabilities differ by .* nats"):
        ServedScorer(Server(fake.url, most_at_once=1), models.vocabulary, 4).check([1, 2, 4, 5], 20)
