"""A vLLM server as a sampler, played by a thread."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.fake_server import Answer, Fake, vllm_of
from tests.support.tiny_models import pair
from tutelage.errors import ServerError
from tutelage.rollout import Server
from tutelage.rollout.samplers import ServedVLLM


def test_a_student_server_is_asked_before_the_first_step(play: Callable[[Answer], Fake]) -> None:
    """Is it there, does it hold prompts and answers whole, and does it have the routes that take new weights?"""
    student = pair().student
    fake = play(vllm_of(student))
    ServedVLLM(Server(fake.url)).check([1, 2], 64)
    assert [path for path, _ in fake.asked][:2] == ["/v1/models", "/reset_prefix_cache"]
    with pytest.raises(ServerError, match="may have 65 tokens, and .* holds 64"):
        ServedVLLM(Server(fake.url)).check([1, 2], 65)
    closed = play(lambda path, body: (404, {}) if path == "/reset_prefix_cache" else vllm_of(student)(path, body))
    with pytest.raises(ServerError, match=r"/reset_prefix_cache refuses a request \(404"):
        ServedVLLM(Server(closed.url)).check([1, 2], 64)
