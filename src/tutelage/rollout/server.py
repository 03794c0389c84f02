"""A server that computes for us, over HTTP: bounded waits, retries with growing pauses, and a clear end.

A server that is away may be starting again, so the same request is sent again; every request of ours may be. A request
that a server refuses would be refused again, and is not.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from tutelage.errors import ConfigurationError, ServerError

__all__ = ["Server"]

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 30.0
# Of a server that is there, but not now: too many requests, or failing inside.
PASSING = (408, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class Server:
    """Requests to one server, each sent at most 1 + `retries` times.

    Fields:
      url: such as http://host:8000; an end in /v1 is dropped.
      timeout_seconds: longest wait for an answer to one sending.
      retries: further sendings, after pauses of 1, 2, 4, ... seconds, at most 30.
      most_at_once: requests under way together.
      key: name of the setting that holds the url, for messages.
    """

    url: str
    timeout_seconds: float = 600.0
    retries: int = 6
    most_at_once: int = 64
    key: str = "vllm.server"

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ConfigurationError(f"{self.key} is {self.url!r}; expected an address such as http://localhost:8000.")
        object.__setattr__(self, "url", self.url.rstrip("/").removesuffix("/v1"))
        if self.timeout_seconds <= 0 or self.retries < 0:
            raise ConfigurationError(
                f"timeout_seconds is {self.timeout_seconds:g} and retries {self.retries} for {self.key}; expected "
                "seconds above 0 and a number of retries of 0 or more."
            )

    def get(self, route: str) -> Any:
        """The JSON that a route answers with; see `post`."""
        return self._asked(route, None)

    def post(self, route: str, body: dict[str, Any] | None = None) -> Any:
        """Send JSON to a route and return the JSON of its answer; None where it answers with nothing.

        Raises:
          ServerError: no answer within the bounds, or a refusal, with the server's own words.
        """
        return self._asked(route, json.dumps(body or {}).encode())

    def post_all(self, route: str, bodies: Sequence[dict[str, Any]]) -> list[Any]:
        """Many requests, `most_at_once` under way together; the answers in the order of the requests."""
        pool = ThreadPoolExecutor(self.most_at_once)
        try:
            return list(pool.map(lambda body: self.post(route, body), bodies))
        finally:
            # After a failure, or Ctrl-C, nobody waits for the others.
            pool.shutdown(wait=False, cancel_futures=True)

    def _asked(self, route: str, body: bytes | None) -> Any:
        request = Request(self.url + route, data=body, headers={"Content-Type": "application/json"})
        problem = ""
        for attempt in range(1 + self.retries):
            if attempt:
                _pause(min(FIRST_PAUSE_SECONDS * 2 ** (attempt - 1), LONGEST_PAUSE_SECONDS))
            try:
                with urlopen(request, timeout=self.timeout_seconds) as answer:
                    text = answer.read()
                return json.loads(text) if text else None
            except HTTPError as refusal:
                problem = f"{refusal.code}: {_words_of(refusal)}"
                if refusal.code not in PASSING:
                    raise ServerError(
                        f"{self.url}{route} refuses a request ({problem}). See docs/usage/vllm.md for how the server "
                        f"must be started, or correct {self.key}."
                    ) from refusal
            except (OSError, HTTPException, json.JSONDecodeError) as failure:  # unreachable, slow, cut off
                problem = str(getattr(failure, "reason", None) or failure) or type(failure).__name__
        raise ServerError(
            f"{self.url}{route} gave no answer: {_times(1 + self.retries)}, at most {self.timeout_seconds:g} seconds "
            f"each, last {problem}. Start the server again (its own log says why it ended), or raise timeout_seconds "
            f"or retries beside {self.key}."
        )


_pause: Callable[[float], None] = time.sleep


def _words_of(refusal: HTTPError) -> str:
    """What a server says about its refusal, in one line."""
    text = refusal.read().decode(errors="replace")
    try:
        said = json.loads(text)
        error = said.get("error", said.get("detail", said))
        text = str(error.get("message", error) if isinstance(error, dict) else error)
    except (json.JSONDecodeError, AttributeError):
        pass
    return " ".join(text.split())[:300].rstrip(".") or refusal.reason


def _times(count: int) -> str:
    return "asked once" if count == 1 else f"asked {count} times"
