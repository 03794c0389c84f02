"""Whatever a server sends, there is an answer or a ServerError: soon, in bounded memory, repeated where it may pass."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from tests.support.fake_server import Fake, RawFake
from tests.support.rollouts import rollout_of
from tutelage.errors import ConfigurationError, ServerError
from tutelage.models import Vocabulary
from tutelage.rollout import ServedScorer, Server
from tutelage.rollout.samplers import SamplingParams, ServedVLLM
from tutelage.rollout.servers import server
from tutelage.types import Rollout

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(server, "_pause", lambda seconds, stopped: None)


@pytest.fixture
def raw() -> Iterator[Callable[..., RawFake]]:
    started: list[RawFake] = []

    def start(*pieces: bytes | float, **fields: Any) -> RawFake:
        started.append(RawFake(*pieces, **fields))
        return started[-1]

    yield start
    for each in started:
        each.close()


def sized(body: bytes, length: object = None) -> bytes:
    return OK + f"Content-Length: {len(body) if length is None else length}\r\n\r\n".encode() + body


# name -> bytes, whether it is asked for again, part of the message
TRANSPORT: dict[str, tuple[tuple[bytes, ...], bool, str]] = {
    "nothing at all": ((), True, "without response"),
    "another protocol": ((b"SSH-2.0-OpenSSH_9.6\r\n",), False, "what is no HTTP"),
    "binary garbage": ((bytes(range(256)) * 40,), False, "what is no HTTP"),
    "a status that is no number": ((b"HTTP/1.1 abc OK\r\n\r\n",), False, "what is no HTTP"),
    "a status of five digits": ((b"HTTP/1.1 20000 OK\r\n\r\n",), False, "what is no HTTP"),
    "a status line without end": ((b"HTTP/1.1 200 " + b"x" * 70_000,), False, "what is no HTTP"),
    "a header without end": ((OK + b"X: " + b"y" * 70_000,), False, "what is no HTTP"),
    "too many headers": ((OK + b"X: y\r\n" * 200 + b"\r\n{}",), False, "what is no HTTP"),
    "'continue' without end": ((b"HTTP/1.1 100 Continue\r\n\r\n" * 50_000,), False, "sends more than"),
    "headers only": ((OK + b"Content-Le",), True, "gave no answer"),
    "headers and no body": ((OK + b"\r\n",), True, "gave no answer"),
    "a body shorter than announced": ((sized(b'{"a": 1}', 100),), True, "gave no answer"),
    "a body longer than announced": ((sized(b'{"a": 1}', 5),), True, "no JSON"),
    "an announced length beyond memory": ((sized(b"{}", 10**15),), False, "sends more than 1,000 bytes"),
    "an announced length that is no number": ((sized(b"{", "many"),), True, "no JSON"),
    "an announced length below 0": ((sized(b"{", -1),), True, "no JSON"),
    "a length of 5,000 digits": ((sized(b"{", "9" * 5000),), True, "no JSON"),
    "a large body": ((sized(b"[" + b"1," * 1000 + b"1]"),), False, "sends more than 1,000 bytes"),
    "a large body of unknown length": ((OK + b"\r\n", *(b"1" * 4096,) * 1000), False, "sends more than 1,000 bytes"),
    "a chunk without a size": ((CHUNKED + b"zz\r\n{}\r\n0\r\n\r\n",), True, "gave no answer"),
    "a chunk below 0": ((CHUNKED + b"-5\r\n{}\r\n0\r\n\r\n",), False, "what is no HTTP"),
    "a chunk of all that comes": ((CHUNKED + b"-1\r\n", *(b"1" * 4096,) * 1000), False, "sends more than 1,000 bytes"),
    "a chunk beyond memory": ((CHUNKED + b"ffffffffffffff\r\n{}",), True, "gave no answer"),
    "chunks cut off": ((CHUNKED + b'5\r\n{"a"\r\n',), True, "gave no answer"),
    "half of a JSON": ((sized(b'{"a": [1, 2'),), True, "no JSON"),
    "no JSON": ((sized(b"<html>Welcome</html>"),), False, "no JSON .*'<html>Welcome</html>'"),
    "two JSON": ((sized(b"{}{}"),), False, "no JSON"),
    "half a character": ((sized(b'{"a": "\xc3"}'),), False, "no JSON"),
    "another encoding": ((sized('{"a": 1}'.encode("utf-16")),), False, "no JSON"),
    "nested without end": ((sized(b"[" * 900),), False, "no JSON"),
    "a number of 5,000 digits": ((sized(b"1" * 900),), False, ""),
    "compressed": ((sized(bytes.fromhex("1f8b080000000000")),), False, "no JSON"),
    "a refusal": ((b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\n{}",), False, r"refuses a request \(401"),
    "a refusal that is cut": (
        (b"HTTP/1.1 400 Bad\r\nContent-Length: 99\r\n\r\n{",),
        False,
        r"refuses a request \(400: {",
    ),
    "a refusal without end": ((b"HTTP/1.1 400 Bad\r\n\r\n", *(b"no " * 4096,) * 200), False, r"\(400: no no no"),
    "a refusal in nulls": ((b'HTTP/1.1 400 Bad\r\n\r\n{"error": null}',), False, r"\(400: None\)"),
    "a failure": ((b"HTTP/1.1 500 Bad\r\n\r\n",), True, "last 500: Bad"),
    "too many": ((b"HTTP/1.1 429 Slow\r\n\r\n",), True, "last 429: Slow"),
    "another protocol asked for": ((b"HTTP/1.1 101 Switch\r\n\r\n",), False, r"\(101: Switch\)"),
}


@pytest.mark.parametrize("name", TRANSPORT)
def test_what_is_no_answer_is_a_server_error(raw: Callable[..., RawFake], name: str) -> None:
    pieces, is_repeated, message = TRANSPORT[name]
    fake = raw(*pieces)
    asked = Server(fake.url, timeout_seconds=20, retries=1, key="teacher.server")
    if name == "a number of 5,000 digits":  # of 900: a number like any other
        assert asked.post("/x", max_bytes=1000) == int("1" * 900)
        return
    with pytest.raises(ServerError, match=message) as problem:
        asked.post("/x", max_bytes=1000)
    assert "\n" not in str(problem.value) and len(str(problem.value)) < 1000
    assert fake.num_connections == 1 + is_repeated


def test_a_reset_in_the_middle_is_asked_for_again(raw: Callable[..., RawFake]) -> None:
    fake = raw(sized(b'{"a": 1', 100), 0.05, resets=True)
    with pytest.raises(ServerError, match="gave no answer: asked 3 times"):
        Server(fake.url, timeout_seconds=20, retries=2).get("/x")
    assert fake.num_connections == 3


@pytest.mark.parametrize("start", [OK, OK + b"\r\n", CHUNKED + b"fff\r\n", b"HTTP/1.1 100 Continue\r\n"])
def test_an_answer_in_drops_ends_at_its_deadline(raw: Callable[..., RawFake], start: bytes) -> None:
    """Each drop comes well within the timeout; drop by drop it would take 40 seconds."""
    fake = raw(start, *(0.02, b" ") * 2000)
    with pytest.raises(ServerError, match=r"at most 0\.2 seconds each, last timed out"):
        Server(fake.url, timeout_seconds=0.2, retries=0).get("/x")


def test_a_refusal_in_drops_is_told_by_its_status(raw: Callable[..., RawFake]) -> None:
    fake = raw(b"HTTP/1.1 400 Bad\r\n\r\nno", *(0.02, b" ") * 2000)
    with pytest.raises(ServerError, match=r"refuses a request \(400: no\)"):
        Server(fake.url, timeout_seconds=0.3, retries=0).get("/x")


def test_after_a_failure_nobody_waits_for_the_others(raw: Callable[..., RawFake]) -> None:
    """Threads that went on reading would hold the process at its end for timeout_seconds, and once more per retry."""
    seen: list[Any] = []

    def answer(_: str, body: dict[str, Any]) -> tuple[int, Any]:
        seen.append(body)
        if body["i"] == 0:
            never.wait(20)
            return 200, {}
        while len(seen) < 2:
            never.wait(0.01)
        return 400, {}

    never = threading.Event()
    fake = Fake(answer)
    before = set(threading.enumerate())
    with pytest.raises(ServerError, match="refuses"):
        Server(fake.url, timeout_seconds=600).post_all("/x", [{"i": 1}, {"i": 0}])
    for thread in set(threading.enumerate()) - before:
        if thread.name.startswith("ThreadPoolExecutor"):
            thread.join(timeout=10)
            assert not thread.is_alive()
    never.set()
    fake.close()


def test_a_redirect_is_not_followed(raw: Callable[..., RawFake]) -> None:
    elsewhere = raw(sized(b'{"a": 1}'))
    place = elsewhere.url.replace("http://", "http://me:secret@").encode()
    for code in (301, 302, 303, 307, 308):
        fake = raw(f"HTTP/1.1 {code} Moved\r\nLocation: ".encode() + place + b"/x?key=secret\r\n\r\n")
        with pytest.raises(
            ServerError, match=rf"sends us elsewhere \({code}, to {elsewhere.url}/x\).*Set teacher"
        ) as sent:
            Server(fake.url, key="teacher.server").post("/x")
        assert "secret" not in str(sent.value)
    assert elsewhere.num_connections == 0


def test_a_servers_words_cannot_command_a_terminal(raw: Callable[..., RawFake]) -> None:
    words = b"\x1b[2J\x07 no\xe2\x80\xae" + b"!" * 5000
    with pytest.raises(ServerError) as problem:
        Server(raw(b"HTTP/1.1 400 Bad\r\n\r\n" + words).url).get("/x")
    assert str(problem.value).isprintable() and len(str(problem.value)) < 600


@pytest.mark.parametrize(
    "address",
    ["http://me:secret@host:8000", "https://secret@host", "http://host:8000?api_key=secret", "me:secret@host:8000"],
)
def test_an_address_with_a_secret_is_refused_without_it(address: str) -> None:
    with pytest.raises(ConfigurationError, match=r"teacher\.server") as problem:
        Server(address, key="teacher.server")
    assert "secret" not in str(problem.value)


@pytest.mark.parametrize(
    "address",
    ["", "host:8000", "ftp://host", "http://", "http://host:port", "http://host:99999", "http://[::1", "http://a b",
     "http://host\r\nX: y", "http://host\x00", "http://" + "a" * 64 + ".de", "http://a..b", "file:///etc/passwd"],
)  # fmt: skip
def test_what_is_no_address_is_refused_at_once(address: str) -> None:
    with pytest.raises(ConfigurationError, match=r"expected an address such as http://localhost:8000"):
        Server(address)


def test_the_key_of_a_server_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake(lambda *_: (200, {}))
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    Server(fake.url).get("/x")
    assert fake.headers[-1]["Authorization"] == "Bearer secret"
    monkeypatch.setenv("VLLM_API_KEY", "sec\nret")
    with pytest.raises(ConfigurationError, match="VLLM_API_KEY holds characters that no key has"):
        Server(fake.url).get("/x")
    fake.close()


# --- answers that are JSON, and not what was asked for ----------------------------------------------------------------

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
