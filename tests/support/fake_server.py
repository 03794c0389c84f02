"""Servers played by a thread of the test: any function as a server, and one of our models as a vLLM."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

from tutelage.distributions import normalise
from tutelage.models import LanguageModel
from tutelage.rollout.reading import response_hidden

Answer = Callable[[str, dict[str, Any]], tuple[int, Any]]


class Fake:
    """A server whose answers are a function; remembers what it was asked. Port 0 = a free one."""

    def __init__(self, answer: Answer, port: int = 0) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.headers: list[Any] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "{}")
                self._reply(body)

            def do_GET(self) -> None:
                self._reply({})

            def _reply(self, body: dict[str, Any]) -> None:
                outer.asked.append((self.path, body))
                outer.headers.append(self.headers)
                code, said = answer(self.path, body)
                text = said if isinstance(said, bytes) else json.dumps(said).encode()
                self.send_response(code)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


class RawFake:
    """A server that writes bytes of the test's choice to whoever connects, whatever was asked, and hangs up.

    Args:
      pieces: what is written, one after the other; a number is a pause in seconds.
      resets: end with a reset in place of an orderly close.
    """

    def __init__(self, *pieces: bytes | float, resets: bool = False) -> None:
        self.pieces, self.resets, self.num_connections = pieces, resets, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:  # closed
                return
            self.num_connections += 1
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):  # the other side may have had enough
            connection.settimeout(10)
            head = b""
            while b"\r\n\r\n" not in head:
                head += connection.recv(2**16)
            for piece in self.pieces:
                if isinstance(piece, bytes):
                    connection.sendall(piece)
                else:
                    time.sleep(piece)
            if self.resets:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            else:
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(2**16):  # what is unread would become a reset
                    pass

    def close(self) -> None:
        self.listener.close()


def student_server(load: Callable[[str], LanguageModel], port: int = 0) -> Fake:
    """A vLLM that serves whatever weights it was given last."""
    now: list[LanguageModel] = []

    def answer(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path == "/collective_rpc":
            now[:] = [load(body["kwargs"]["weights_path"])]
            return 200, b""
        if now:
            return vllm_of(now[0])(path, body)
        if path == "/v1/models":
            return 200, {"data": [{"id": "m"}]}
        logprobs = {"token_logprobs": [-1.0], "top_logprobs": [{"token_id:1": -1.0}]}
        return 200, {"choices": [{"token_ids": [1], "logprobs": logprobs}]}

    return Fake(answer, port)


def logprobs_of(model: LanguageModel, tokens: list[int]) -> torch.Tensor:
    """As a server has them, stop ids apart: [T, V] of every token but the first."""
    with torch.no_grad():
        hidden = response_hidden(model, [(tokens[:1], tokens[1:])])
        # Padding has no mass in a trained model; in a random one it would.
        return normalise(model.logits(hidden)[:, : max(model.known_ids) + 1])


def vllm_of(model: LanguageModel, shift: float = 0.0, context: int = 64) -> Answer:
    """The routes of vLLM, with the model's own numbers; `shift` falsifies the log-probabilities of what it samples."""

    def answer(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path == "/v1/models":
            return 200, {"data": [{"id": "m", "max_model_len": context}]}
        if path != "/v1/completions":
            return 200, b""
        if "prompt_logprobs" in body:
            rows = logprobs_of(model, body["prompt"])
            places: list[Any] = [None]
            for row, token in zip(rows, body["prompt"][1:], strict=True):
                named = {*row.topk(body["prompt_logprobs"]).indices.tolist(), token}
                places.append({str(i): {"logprob": float(row[i]), "rank": 1} for i in named})
            return 200, {"choices": [{"prompt_logprobs": places}]}
        generator, tokens, own, tops = torch.Generator().manual_seed(body["seed"]), list(body["prompt"]), [], []
        for _ in range(body["max_tokens"]):
            row = logprobs_of(model, [*tokens, 0])[-1]
            token = int(row.exp().multinomial(1, generator=generator))
            tokens.append(token)
            own.append(float(row[token]) + shift)
            tops.append({f"token_id:{i}": float(row[i]) for i in (token, *(body["logprob_token_ids"] or []))})
            if token in body["stop_token_ids"]:
                break
        new = tokens[len(body["prompt"]) :]
        return 200, {"choices": [{"token_ids": new, "logprobs": {"token_logprobs": own, "top_logprobs": tops}}]}

    return answer
