"""Whatever a server sends, there is an answer or a ServerError: soon, in bounded memory, repeated where it may pass."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.fake_server import Fake, RawFake
from tutelage.errors import ConfigurationError, ServerError
from tutelage.rollout import Server
from tutelage.rollout.servers import server

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


@pytest.mark.processes
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


@pytest.mark.processes
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
