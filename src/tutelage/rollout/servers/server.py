"""A server that computes for us, over HTTP: bounded waits, retries with growing pauses, and a clear end.

A server that does not answer may be starting again, so the same request is sent again; all our requests may be
repeated. A request is not repeated if the server refuses it, or if its answer makes no sense.
"""

from __future__ import annotations

import json
import os
import ssl
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPException, IncompleteRead
from threading import Event
from typing import Any
from urllib.error import URLError
from urllib.parse import urlsplit

from tutelage.errors import ConfigurationError, ServerError, printable
from tutelage.rollout.servers.exchange import Bounds, Reply, TooLargeError, exchange

__all__ = ["DEFAULT_RETRIES", "DEFAULT_TIMEOUT_SECONDS", "Server", "address_of"]

DEFAULT_TIMEOUT_SECONDS, DEFAULT_RETRIES = 600.0, 6
FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 1.0, 30.0
# Of a server that is there, but not now: too many requests, or failing inside.
PASSING = (408, 429, 500, 502, 503, 504)
MAX_BYTES = 2**22  # of an answer whose size was not worked out
MAX_WORDS = 300  # characters of a server's own words in a message
API_KEY = "VLLM_API_KEY"  # the variable that vLLM reads its own key from


def address_of(url: str, key: str) -> str:
    """A server's address without its end in /v1, or a refusal; nothing secret is ever repeated from it.

    Raises:
      ConfigurationError: it is no address, or holds a name and password.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port, (parts.hostname or "").encode("idna")
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and url.isprintable() and " " not in url
    except ValueError:  # a port that is no number, brackets that do not close
        parts, is_address = None, False
    if "@" in url:
        raise ConfigurationError(
            f"{key} holds a user name or password before the server's name; it would stand in the run's files. Leave "
            f"it out, and put the key that the server asks for into the environment variable {API_KEY}."
        )
    if parts is None or not is_address or parts.query or parts.fragment:
        shown = url.partition("?")[0]  # a key may follow
        raise ConfigurationError(f"{key} is {shown!r}; expected an address such as http://localhost:8000.")
    return url.rstrip("/").removesuffix("/v1")


class _RefusalError(ServerError):
    """The server is there, and says no."""


@dataclass(frozen=True)
class Server:
    """Requests to one server, each sent at most 1 + `retries` times.

    Fields:
      url: such as http://host:8000; an end in /v1 is dropped.
      timeout_seconds: from one sending to the last byte of its answer.
      retries: further sendings, after pauses of 1, 2, 4, ... seconds, at most 30.
      most_at_once: requests under way together.
      key: name of the setting that holds the url, for messages.
    """

    url: str
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS
    retries: int = DEFAULT_RETRIES
    most_at_once: int = 64
    key: str = "vllm.server"

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", address_of(self.url, self.key))
        # 10^9 seconds: more than a socket can wait
        if not 0 < self.timeout_seconds < 1e9 or self.retries < 0:
            raise ConfigurationError(
                f"timeout_seconds is {self.timeout_seconds:g} and retries {self.retries} for {self.key}; expected "
                "seconds above 0 and a number of retries of 0 or more."
            )

    def get(self, route: str) -> Any:
        """The JSON that a route answers with; see `post`."""
        return self._asked(route, None, MAX_BYTES, Event())

    def post(self, route: str, body: dict[str, Any] | None = None, *, max_bytes: int = MAX_BYTES) -> Any:
        """Send JSON to a route and return the JSON of its answer; None where it answers with nothing.

        Args:
          max_bytes: of the answer; a larger one is an error.
        Raises:
          ServerError: no answer within the bounds, one that makes no sense, or a refusal, with the server's own words.
        """
        return self._asked(route, json.dumps(body or {}).encode(), max_bytes, Event())

    def post_if_there(self, route: str, body: dict[str, Any]) -> Any:
        """As `post`; None where the server refuses it, as one without this route does."""
        try:
            return self.post(route, body)
        except _RefusalError:
            return None

    def post_all(self, route: str, bodies: Sequence[dict[str, Any]], *, max_bytes: int = MAX_BYTES) -> list[Any]:
        """Many requests, `most_at_once` under way together; the answers in the order of the requests."""
        pool, stopped = ThreadPoolExecutor(self.most_at_once), Event()

        def answered(body: dict[str, Any]) -> Any:
            return self._asked(route, json.dumps(body).encode(), max_bytes, stopped)

        try:
            return list(pool.map(answered, bodies))
        finally:
            # After a failure, or Ctrl-C, the other answers are not needed, and their requests end soon.
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)

    def _asked(self, route: str, body: bytes | None, max_bytes: int, stopped: Event) -> Any:
        where, problem, headers = self.url + route, "", _headers()
        for attempt in range(1 + self.retries):
            if attempt:
                _pause(min(FIRST_PAUSE_SECONDS * 2 ** (attempt - 1), MAX_PAUSE_SECONDS), stopped)
            if stopped.is_set():
                break
            try:
                reply = exchange(where, body, headers, Bounds(self.timeout_seconds, max_bytes, stopped))
            except TooLargeError:
                raise ServerError(
                    f"{where} sends more than {max_bytes:,} bytes, which no answer to this request has. Check that "
                    f"{self.key} is the address of a vLLM server."
                ) from None
            except (OSError, HTTPException, ValueError) as failure:
                cause = failure.reason if isinstance(failure, URLError) else failure
                problem = _in_one_line(str(cause)) or type(cause).__name__
                if not _may_pass(cause):
                    raise self._senseless(where, f"what is no HTTP ({type(cause).__name__}: {problem})") from failure
                continue
            if reply.status in PASSING:
                problem = f"{reply.status}: {_words_of(reply)}"
                continue
            self._check_accepted(where, reply)
            try:
                return json.loads(reply.body.decode("utf-8")) if reply.body else None
            except (ValueError, RecursionError) as failure:
                problem = f"an answer that is no JSON ({_in_one_line(str(failure))}), beginning {_excerpt(reply.body)}"
                if not _is_cut(reply.body):
                    raise self._senseless(where, problem) from failure
        raise ServerError(
            f"{where} gave no answer: {_times(1 + self.retries)}, at most {self.timeout_seconds:g} seconds "
            f"each, last {problem}. Start the server again (its own log says why it ended), or raise timeout_seconds "
            f"or retries beside {self.key}."
        )

    def _check_accepted(self, where: str, reply: Reply) -> None:
        if 300 <= reply.status < 400:
            raise ServerError(
                f"{where} sends us elsewhere ({reply.status}, to {_without_secrets(reply.location)}), and redirects "
                f"are not followed. Set {self.key} to the address at which the server itself answers."
            )
        if not 200 <= reply.status < 300:
            raise _RefusalError(
                f"{where} refuses a request ({reply.status}: {_words_of(reply)}). See docs/usage/vllm.md for how the "
                f"server must be started, or correct {self.key}."
            )

    def _senseless(self, where: str, found: str) -> ServerError:
        return ServerError(
            f"{where} sent {found}; expected the JSON of a vLLM server. Check that {self.key} is the address of one."
        )


def _pause(seconds: float, stopped: Event) -> None:
    stopped.wait(seconds)


def _headers() -> dict[str, str]:
    headers, api_key = {"Content-Type": "application/json"}, os.environ.get(API_KEY)
    if api_key is not None:
        if not (api_key.isascii() and api_key.isprintable()):
            raise ConfigurationError(
                f"the environment variable {API_KEY} holds characters that no key has. Set it to the server's key."
            )
        headers["Authorization"] = f"Bearer {api_key}"
    return headers


def _may_pass(cause: object) -> bool:
    """Whether a failure may be gone at the next try: away, slow and cut off may; what is no HTTP will stay so."""
    if isinstance(cause, ssl.SSLError):
        return isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError)
    return isinstance(cause, OSError | IncompleteRead | str)


def _is_cut(body: bytes) -> bool:
    """Whether JSON has a beginning and no end, as when a server dies while it writes."""
    text = body.strip()
    return text[:1] == b"{" and text[-1:] != b"}"


def _words_of(reply: Reply) -> str:
    """What a server says about its refusal, in one line."""
    text = reply.body.decode(errors="replace")
    try:
        said = json.loads(text)
        error = said.get("error", said.get("detail", said))
        text = str(error.get("message", error) if isinstance(error, dict) else error)
    except (ValueError, RecursionError, AttributeError):
        pass
    return (_in_one_line(text) or _in_one_line(reply.reason) or "no reason given").rstrip(".")


def _in_one_line(text: str) -> str:
    """A server's words, shortened, and without characters that a terminal would obey."""
    return printable(" ".join(text.split()))[:MAX_WORDS]


def _excerpt(body: bytes) -> str:
    return repr(_in_one_line(body[:80].decode(errors="replace")))


def _without_secrets(location: str | None) -> str:
    """A foreign address as far as it may be shown."""
    try:
        parts = urlsplit(location or "")
        return _in_one_line(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}")
    except ValueError:
        return "no address"


def _times(count: int) -> str:
    return "asked once" if count == 1 else f"asked {count} times"
