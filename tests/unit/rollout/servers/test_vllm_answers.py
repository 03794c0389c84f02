"""Answers that are JSON, and not what was asked for."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.support.fake_server import Fake
from tests.support.rollouts import rollout_of
from tutelage.errors import ServerError
from tutelage.models import Vocabulary
from tutelage.rollout import ServedScorer, Server
from tutelage.rollout.samplers import SamplingParams, ServedVLLM
from tutelage.types import Rollout

MODELS = {"data": [{"id": "m", "max_model_len": 64}]}
VOCABULARY = Vocabulary(20, (7, 8), 7, (3,))


def entry(logprob: object, rank: object = 1) -> dict[str, Any]:
    return {"logprob": logprob, "rank": rank, "decoded_token": "x"}


def told() -> dict[str, Any]:
    """A teacher's whole answer to the tokens 4, 1, 2, asked for 3 and a second stop id."""
    place = {"1": entry(-1.0), "2": entry(-2.0), "5": entry(-3.0), "7": entry(-4.0)}
    return {
        "model": "m",
        "choices": [{"prompt_logprobs": [None, place, copy.deepcopy(place)]}],
        "usage": {"prompt_tokens": 3},
    }


def drawn() -> dict[str, Any]:
    """A student's whole answer: the tokens 1 and 7, with both stop ids at the last place."""
    tops = [{"token_id:1": -1.0}, {"token_id:7": -0.5, "token_id:8": -2.0}]
    choice = {
        "token_ids": [1, 7],
        "prompt_token_ids": [4],
        "logprobs": {"token_logprobs": [-1.0, -0.5], "top_logprobs": tops},
    }
    return {"model": "m", "choices": [choice], "usage": {"prompt_tokens": 1}}


def put(make: Callable[[], dict[str, Any]], path: str, value: object) -> Any:
    """An answer with another value at a place such as choices.0.logprobs; `...` takes it away."""
    answer = make()
    *way, last = [int(part) if part.isdigit() and part in "012" else part for part in path.split(".")]
    inner: Any = answer
    for part in way:
        inner = inner[str(part) if isinstance(inner, dict) else part]
    last = str(last) if isinstance(inner, dict) else last
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return answer


SHARED: list[tuple[str, object]] = [
    ("choices", ...), ("choices", None), ("choices", []), ("choices", {}), ("choices", "no"), ("choices", [None]),
    ("choices", [{}, {}]), ("choices.0", []), ("model", "other"), ("model", None), ("usage.prompt_tokens", 99),
]  # fmt: skip
TEACHER: list[tuple[str, object]] = [
    *SHARED,
    *(("choices.0.prompt_logprobs", value) for value in (..., None, [], {}, "no", 5, [None], [None, {}, {}])),
    *(("choices.0.prompt_logprobs.2", value) for value in (None, [], {}, "no", {"1": entry(-1.0)})),
    *(("choices.0.prompt_logprobs.2.5", value) for value in (..., None, 3, [], {}, {"rank": 1})),
    *(("choices.0.prompt_logprobs.2.2", value) for value in (..., None, -1.0)),
    *(
        ("choices.0.prompt_logprobs.2.5.logprob", value)
        for value in (None, "-1", True, [], float("nan"), float("inf"), 0.5, 1e300, 10**400, -0.01)
    ),
    ("choices.0.prompt_logprobs.2.20", entry(-9.0)), ("choices.0.prompt_logprobs.2.-1", entry(-9.0)),
    ("choices.0.prompt_logprobs.2.07", entry(-9.0)), ("choices.0.prompt_logprobs.2.x", entry(-9.0)),
    ("choices.0.prompt_logprobs.2. 9", entry(-9.0)), ("choices.0.prompt_logprobs.2.²", entry(-9.0)),
    ("choices.0.prompt_logprobs.2." + "9" * 5000, entry(-9.0)), ("choices.0.prompt_logprobs.2.2", entry(-2.0, rank=5)),
]  # fmt: skip
STUDENT: list[tuple[str, object]] = [
    *SHARED,
    *(
        ("choices.0.token_ids", value)
        for value in (..., None, [], {}, "17", [1, None], [1, "7"], [1, 7.0], [True, 7], [-1, 7], [10**30, 7],
                      [7, 1], [1, 2], [1], [1, 7, 7], [1] * 5)
    ),
    ("choices.0.prompt_token_ids", [5]), ("choices.0.prompt_token_ids", "4"),
    *(("choices.0.logprobs", value) for value in (..., None, [], "no", {}, {"token_logprobs": [-1, -1]})),
    *(
        ("choices.0.logprobs.token_logprobs", value)
        for value in (..., None, [], [-1.0], [-1.0] * 3, [None, -1.0], ["-1", -1.0], [0.1, -1.0], [float("nan"), -1.0])
    ),
    *(
        ("choices.0.logprobs.top_logprobs", value)
        for value in (..., None, [], [None], [None, []], [None, {"x": -1.0}], [None, {"token_id:7": 0.1}],
                      [None, {"token_id:7": None}], [None, {"token_id:7": -1, "token_id:07": -2}])
    ),
]  # fmt: skip


def play(answer: object, models: object = MODELS) -> Fake:
    return Fake(lambda path, _: (200, models if path == "/v1/models" else answer))


def score(fake: Fake) -> Rollout:
    teacher = ServedScorer(Server(fake.url, retries=0), VOCABULARY, 3, num_rows=20)
    (scored,) = teacher.score([rollout_of([4], [1, 2], torch.zeros(2), torch.zeros(2))])
    return scored


def sample(fake: Fake) -> Any:
    return ServedVLLM(Server(fake.url, retries=0)).sample([[4]], [0], SamplingParams(1.0, 4, (7, 8), ()))


def test_the_whole_answers_are_accepted() -> None:
    fakes = play(told()), play(drawn())
    assert score(fakes[0]).is_scored
    (answer,) = sample(fakes[1])
    assert answer.tokens == [1, 7] and answer.last_logprobs == {7: -0.5, 8: -2.0}
    for fake in fakes:
        fake.close()


def test_a_teachers_answer_that_is_wrong_somewhere_is_refused() -> None:
    answers = [*(put(told, path, value) for path, value in TEACHER), None, [], 5, "no", {}, {"error": "no"}]
    now: list[Any] = []
    fake = Fake(lambda path, _: (200, MODELS if path == "/v1/models" else now[0]))
    for answer in answers:
        now[:] = [answer]
        with pytest.raises(ServerError, match=r"/v1/completions answered with .*; expected ") as problem:
            score(fake)
        assert str(problem.value).isprintable() and len(str(problem.value)) < 600
    fake.close()


def test_a_students_answer_that_is_wrong_somewhere_is_refused() -> None:
    answers = [*(put(drawn, path, value) for path, value in STUDENT), None, [], 5, "no", {}, {"error": "no"}]
    now: list[Any] = []
    fake = Fake(lambda path, _: (200, MODELS if path == "/v1/models" else now[0]))
    for answer in answers:
        now[:] = [answer]
        with pytest.raises(ServerError):
            sample(fake)
    fake.close()


@pytest.mark.parametrize(
    "models",
    [None, [], 5, {}, {"data": None}, {"data": {}}, {"data": [None]}, {"data": [{}]}, {"data": [{"id": 5}]},
     {"data": []}, {"data": [{"id": "m", "max_model_len": "64"}]}, {"data": [{"id": "m", "max_model_len": True}]},
     {"data": [{"id": "m", "max_model_len": 0}]}, {"data": [{"id": "m", "max_model_len": 1.5}]}],
)  # fmt: skip
def test_a_list_of_models_that_is_none_is_refused(models: object) -> None:
    fake = play(told(), models)
    with pytest.raises(ServerError):
        score(fake)
    fake.close()


def test_a_mass_above_1_is_no_small_tail() -> None:
    """The lower bound of a tail is for rounding, and not for probabilities that are none."""
    fake = play(put(told, "choices.0.prompt_logprobs.2.5.logprob", -0.4))
    with pytest.raises(ServerError, match=r"probabilities that add up to 1\.\d+; expected at most 1"):
        score(fake)
    fake.close()


def test_a_teacher_that_becomes_another_is_refused() -> None:
    names = iter("mmx")
    fake = Fake(lambda path, _: (200, {"data": [{"id": next(names)}]} if path == "/v1/models" else told()))
    teacher = ServedScorer(Server(fake.url, retries=0), VOCABULARY, 3, num_rows=20)
    rollout = rollout_of([4], [1, 2], torch.zeros(2), torch.zeros(2))
    teacher.score([rollout])
    teacher.score([rollout])
    with pytest.raises(ServerError, match="serves 'x' now, and 'm' before"):
        teacher.score([rollout])
    fake.close()
