"""Waiting for a server, played by a thread: what is sent again, what ends at once, and how waiting ends."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.fake_server import Answer, Fake
from tutelage.errors import ConfigurationError, ServerError
from tutelage.rollout import Server


def test_what_passes_is_asked_again_with_growing_pauses(play: Callable[[Answer], Fake], pauses: list[float]) -> None:
    codes = iter([503, 500, 429, 200])
    fake = play(lambda path, body: (next(codes), {"path": path, **body}))
    assert Server(fake.url + "/v1/").post("/v1/x", {"a": 1}) == {"path": "/v1/x", "a": 1}
    assert pauses == [1, 2, 4] and len(fake.asked) == 4


def test_a_refusal_is_said_at_once_in_the_servers_words(play: Callable[[Answer], Fake], pauses: list[float]) -> None:
    fake = play(lambda *_: (400, {"error": {"message": "too many\nlogprobs."}}))
    with pytest.raises(
        ServerError, match=r"/v1/x refuses a request \(400: too many logprobs\).*correct teacher\.server"
    ):
        Server(fake.url, key="teacher.server").post("/v1/x")
    assert pauses == [] and len(fake.asked) == 1


def test_a_server_that_is_gone_is_given_up_with_the_figures(
    play: Callable[[Answer], Fake], pauses: list[float]
) -> None:
    fake = play(lambda *_: (200, {}))
    fake.close()
    gone = Server(fake.url, retries=6, timeout_seconds=5)
    with pytest.raises(ServerError, match=r"gave no answer: asked 7 times, at most 5 seconds each, last .*refused"):
        gone.get("/v1/models")
    assert pauses == [1, 2, 4, 8, 16, 30]
    assert isinstance(ServerError(), ConnectionError)


def test_one_sending_waits_no_longer_than_its_bound(play: Callable[[Answer], Fake], pauses: list[float]) -> None:
    fake = play(lambda *_: (time.sleep(1), (200, {}))[1])
    with pytest.raises(ServerError, match=r"asked once, at most 0\.05 seconds each, last timed out"):
        Server(fake.url, timeout_seconds=0.05, retries=0).get("/v1/models")


def test_an_answer_that_is_cut_off_is_asked_for_again(play: Callable[[Answer], Fake], pauses: list[float]) -> None:
    texts = iter([b'{"a": ', b'{"a": 1}'])
    assert Server(play(lambda *_: (200, next(texts))).url).get("/x") == {"a": 1}
    assert pauses == [1]


def test_many_requests_keep_their_order_and_one_failure_ends_them(
    play: Callable[[Answer], Fake], pauses: list[float]
) -> None:
    fake = play(lambda _, body: (200 if body["i"] < 50 else 400, body))
    asked = Server(fake.url, most_at_once=4)
    assert asked.post_all("/x", [{"i": i} for i in range(20)]) == [{"i": i} for i in range(20)]
    with pytest.raises(ServerError, match="refuses"):
        asked.post_all("/x", [{"i": 50}] + [{"i": i} for i in range(20)])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"url": "localhost:8000"}, r"vllm\.server is 'localhost:8000'; expected an address"),
        ({"url": "http://a", "timeout_seconds": 0}, "timeout_seconds is 0"),
        ({"url": "http://a", "retries": -1}, "retries -1"),
    ],
)
def test_impossible_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Server(**fields)
