"""A real vLLM on the CPU, in its own environment (make test-vllm); engines and servers as small as can be."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

HAS_VLLM = importlib.util.find_spec("vllm") is not None
# A cache of 1 GiB, and cores as the machine gives them.
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")

START_SECONDS = 900


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/vllm" in item.path.as_posix():
            item.add_marker(pytest.mark.vllm)
            item.add_marker(pytest.mark.timeout(1800))
            if not HAS_VLLM:
                item.add_marker(pytest.mark.skip(reason="needs vLLM in an environment of its own: make test-vllm"))


class Service:
    """A vLLM server as a process of its own."""

    def __init__(self, model: Path, folder: Path, *options: str, port: int | None = None) -> None:
        self.port = port or _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / f"vllm-{model.name}-{self.port}.log"
        # Not the command `vllm`: that of the CPU's package looks for a package called vllm.
        arguments = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
        arguments += ["--port", str(self.port), "--host", "127.0.0.1", "--dtype", "float32", "--max-model-len", "256"]
        arguments += ["--max-logprobs", "24", "--enforce-eager", "--no-enable-chunked-prefill", *options]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                arguments,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "VLLM_SERVER_DEV_MODE": "1", "OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )

    def wait(self) -> Service:
        """Until it answers."""
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=2):
                    return self
            except OSError:
                time.sleep(1)
        raise AssertionError(f"no server after {START_SECONDS} seconds: {self.log.read_text()[-3000:]}")

    def kill(self) -> None:
        """All its processes, at once."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Service]]:
    """Start a server, and wait for it; all of them end with the module."""
    started: list[Service] = []

    def start(model: Path, *options: str, port: int | None = None) -> Service:
        started.append(Service(model, tmp_path_factory.mktemp("serve"), *options, port=port))
        return started[-1].wait()

    yield start
    for service in started:
        service.kill()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
