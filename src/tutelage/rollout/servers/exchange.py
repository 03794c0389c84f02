"""One HTTP exchange that ends by its deadline and stays below its size, whatever the other side does.

The standard library's timeouts hold for one socket operation each, so a byte a second would never end, and its reads
have no limit. Here every wait is given what is left of the whole, and every byte that arrives is counted. Redirects are
answers like any other: an address that the user did not write is not asked. Proxies of the environment are used.
"""

from __future__ import annotations

import io
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection, IncompleteRead
from threading import Event
from typing import Any
from urllib.request import HTTPHandler, HTTPSHandler, OpenerDirector, ProxyHandler, Request

__all__ = ["Bounds", "Reply", "TooLargeError", "exchange"]

PIECE_BYTES = 2**16  # read at once, so that an announced length reserves no memory
MAX_ERROR_BYTES = 2**16  # of an error's body
MAX_HEADER_BYTES = 2**18
MAX_READ_SECONDS = 0.5  # between two looks at whether the answer is still needed


class TooLargeError(Exception):
    """More bytes than the answer may have."""


@dataclass
class Bounds:
    """What one exchange may take.

    Fields:
      seconds: from now until all of the answer is here.
      max_bytes: of the answer's body.
      stopped: set when the answer is not needed any more.
    """

    seconds: float
    max_bytes: int
    stopped: Event = field(default_factory=Event)
    _received: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._deadline = time.monotonic() + self.seconds

    def left(self) -> float:
        """Seconds that are left.

        Raises:
          TimeoutError: there are none, or the answer is not needed any more.
        """
        seconds = self._deadline - time.monotonic()
        if seconds <= 0 or self.stopped.is_set():
            raise TimeoutError("timed out")
        return seconds

    def count(self, received: int) -> None:
        """Note bytes as they come from the network; twice the body leaves room for the marks between its chunks."""
        self._received += received
        if self._received > MAX_HEADER_BYTES + 2 * max(self.max_bytes, MAX_ERROR_BYTES):
            raise TooLargeError


@dataclass(frozen=True)
class Reply:
    """What came back.

    Fields:
      status: of HTTP.
      body: whole; of an error, its beginning.
      reason, location: the status in words, and where a redirect points.
    """

    status: int
    body: bytes
    reason: str
    location: str | None


def exchange(url: str, body: bytes | None, headers: Mapping[str, str], bounds: Bounds) -> Reply:
    """GET, or POST where there is a body.

    Raises:
      TooLargeError: the body is larger than `bounds.max_bytes`.
      OSError: no connection, or one that ended, or no time left.
      HTTPException, ValueError: what came is no HTTP, or was cut off (IncompleteRead).
    """
    opener = OpenerDirector()
    for handler in (ProxyHandler(), _Handler(bounds), _SecureHandler(bounds)):
        opener.add_handler(handler)
    request = Request(url, data=body, headers=dict(headers))
    with opener.open(request, timeout=bounds.left()) as response:
        is_error = response.status >= 300
        content = _error_body(response) if is_error else _whole_body(response, bounds.max_bytes)
        return Reply(response.status, content, response.reason, response.headers.get("Location"))


def _whole_body(response: HTTPResponse, max_bytes: int) -> bytes:
    if response.length is not None and response.length > max_bytes:
        raise TooLargeError
    content = bytearray()
    while piece := response.read(PIECE_BYTES):
        content += piece
        if len(content) > max_bytes:
            raise TooLargeError
    # Fewer bytes than announced, or none and no length: the server hung up, perhaps within the headers.
    if response.length or (not content and response.length is None and not response.chunked):
        raise IncompleteRead(bytes(content[:80]), response.length)
    return bytes(content)


def _error_body(response: HTTPResponse) -> bytes:
    """What there is of it: the status says enough."""
    content = bytearray()
    try:
        while len(content) < MAX_ERROR_BYTES and (piece := response.read1(PIECE_BYTES)):
            content += piece
    except (OSError, HTTPException, ValueError, TooLargeError):
        pass
    return bytes(content[:MAX_ERROR_BYTES])


class _Reader(io.RawIOBase):
    """Reads a socket within bounds; `owner` is what holds the socket open."""

    def __init__(self, sock: socket.socket, owner: io.RawIOBase, bounds: Bounds) -> None:
        self._socket, self._owner, self._bounds = sock, owner, bounds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            self._socket.settimeout(min(self._bounds.left(), MAX_READ_SECONDS))
            try:
                received = self._socket.recv_into(buffer)
            except TimeoutError:
                continue
            self._bounds.count(received)
            return received

    def close(self) -> None:
        self._owner.close()
        super().close()


class _Response(HTTPResponse):
    def __init__(self, sock: socket.socket, *arguments: Any, bounds: Bounds, **named: Any) -> None:
        super().__init__(sock, *arguments, **named)
        self.fp: io.BufferedReader = io.BufferedReader(_Reader(sock, self.fp.detach(), bounds))


class _Connection(HTTPConnection):
    def __init__(self, *arguments: Any, bounds: Bounds, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._bounds = bounds
        self.response_class = partial(_Response, bounds=bounds)  # type: ignore[assignment]
        self._create_connection = self._connected

    def _connected(self, address: tuple[str, int], *_: Any) -> socket.socket:
        """The first of a name's addresses that answers, within the time that is left for all of them."""
        problem: OSError | None = None
        for *_kind, place in socket.getaddrinfo(*address, type=socket.SOCK_STREAM):
            try:
                return socket.create_connection((str(place[0]), int(place[1])), self._bounds.left())
            except OSError as failure:
                problem = failure
        raise problem or OSError(f"no address of {address[0]} is known")

    def send(self, data: Any) -> None:
        if self.sock is None:
            self.connect()
        for start in range(0, len(data), PIECE_BYTES):
            self.sock.settimeout(self._bounds.left())
            super().send(data[start : start + PIECE_BYTES])


class _SecureConnection(_Connection, HTTPSConnection):
    pass


class _Handler(HTTPHandler):
    def __init__(self, bounds: Bounds) -> None:
        super().__init__()
        self._bounds = bounds

    def http_open(self, request: Request) -> Any:
        return self.do_open(partial(_Connection, bounds=self._bounds), request)


class _SecureHandler(HTTPSHandler):
    def __init__(self, bounds: Bounds) -> None:
        super().__init__()
        self._bounds = bounds

    def https_open(self, request: Request) -> Any:
        return self.do_open(partial(_SecureConnection, bounds=self._bounds), request)
