"""The tokens of a logged answer: pieces that join to the answer, numbers beside them, bounded."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tests.support.rollouts import rollout_of
from tutelage.training.token_log import MAX_TOKENS, pieces_of, token_log

BYTES = "naïve → \U0001f9ee, so 12".encode()


def by_bytes(tokens: Sequence[int]) -> str:
    return bytes(tokens).decode("utf-8", errors="replace")


def test_characters_of_several_tokens_come_whole() -> None:
    pieces = pieces_of(BYTES, by_bytes)
    assert len(pieces) == len(BYTES) and "".join(pieces) == BYTES.decode()
    assert pieces[:4] == ["n", "a", "", "ï"]


def test_a_decoder_that_strips_the_first_space() -> None:
    words = [" one", " two", "", " three", *(f" {number}" for number in range(30))]
    pieces = pieces_of(range(len(words)), lambda tokens: "".join(words[token] for token in tokens).lstrip())
    assert "".join(pieces) == "".join(words).lstrip()
    assert pieces[1:4] == [" two", "", " three"]


def test_columns_are_rounded_and_bounded() -> None:
    length = MAX_TOKENS + 5
    rollout = rollout_of(
        [0], [65] * length, torch.zeros(length), torch.full((length,), -0.12345),
        replaced=torch.arange(length) == 2, kl_to_student=torch.full((length,), 1e-9),
    )  # fmt: skip
    log = token_log(rollout, by_bytes)
    assert set(log) == {"text", "student_logprob", "kl", "replaced"}, "what is not known is not there"
    assert {len(column) for column in log.values()} == {MAX_TOKENS}
    assert log["student_logprob"][0] == -0.123 and log["kl"][0] == 0 and log["replaced"][:4] == [0, 0, 1, 0]


def test_what_the_teacher_rules_out_is_null() -> None:
    teacher = torch.tensor([-0.5, -torch.inf])
    log = token_log(
        rollout_of([0], [65, 66], torch.zeros(2), torch.zeros(2), {"teacher.logprobs_T": teacher}), by_bytes
    )
    assert log["teacher_logprob"] == [-0.5, None]
