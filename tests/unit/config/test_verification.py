from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.support.rollouts import rollout_of
from tests.support.tiny_run import make_tokenizer
from tutelage.config import DataConfig, make_verifier
from tutelage.types import Rollout


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tokenizer()


def rollout(tokenizer: Any, response: str, *, prompt: str = "12 - 5 + 9?", finished: bool = True) -> Rollout:
    tokens = tokenizer(response)["input_ids"]
    unknown = torch.zeros(len(tokens))
    return rollout_of(tokenizer(prompt)["input_ids"], tokens, unknown, unknown, finished=finished)


def test_of_an_answer_cut_at_the_limit_counts_what_is_whole(tokenizer: Any) -> None:
    cut = [rollout(tokenizer, text, finished=False) for text in ("it is 16", r"it is \boxed{16}, since")]
    for truncated, expected in (("whole", [False, True]), ("wrong", [False, False]), ("as_text", [True, True])):
        assert (
            make_verifier(DataConfig(path="none", truncated_answers=truncated), tokenizer)(cut, ["16", "16"])
            == expected
        )  # type: ignore[arg-type]


def test_a_thinking_that_the_prompt_opened_must_end(tokenizer: Any) -> None:
    judge = make_verifier(DataConfig(path="none"), tokenizer)
    for response, expected in ((r"perhaps \boxed{16}", False), ("perhaps 17</think> 16", True)):
        assert judge([rollout(tokenizer, response, prompt="Go.<think>\n")], ["16"]) == [expected]
    assert judge([rollout(tokenizer, "16", prompt="Go.<think>\n\n</think>\n\n")], ["16"]) == [True]
