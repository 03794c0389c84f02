"""What was written is what is read."""

from __future__ import annotations

import torch

from tests.support.tiny_models import make_model
from tutelage.distributions import normalise, tail_logprobs
from tutelage.rollout import ScoreCache
from tutelage.types import Rollout

FIELDS = (
    "teacher.logprobs_T",
    "teacher.entropy_T",
    "teacher.top.support_ids",
    "teacher.top.logprobs",
    "teacher.top.tail_logprobs",
)


def test_scores_are_those_of_a_plain_forward(scored: list[Rollout]) -> None:
    model = make_model("qwen3", vocab_size=20, seed=2)
    rollout = scored[2]
    tokens = torch.tensor([[*rollout.tokens_for_teacher, *rollout.response_tokens]])
    logprobs = normalise(model(tokens).logits[0, len(rollout.tokens_for_teacher) - 1 : -1])
    top = logprobs.topk(4)
    assert rollout.teacher.top.support_ids is not None and rollout.support_ids is None
    assert torch.equal(rollout.teacher.top.support_ids.long(), top.indices)
    torch.testing.assert_close(rollout.teacher.top.logprobs, top.values)
    torch.testing.assert_close(rollout.teacher.top.tail_logprobs, tail_logprobs(logprobs, top.indices))
    torch.testing.assert_close(
        rollout.teacher_logprobs, logprobs.gather(-1, torch.tensor(rollout.response_tokens)[:, None])[:, 0]
    )


def test_what_is_read_is_what_was_written(cache: ScoreCache, scored: list[Rollout]) -> None:
    for number, rollout in enumerate(scored):
        read = cache.read(*divmod(number, 3))
        for name in ("prompt_tokens", "teacher_prompt_tokens", "response_tokens", "finished", "teacher_name"):
            assert getattr(read, name) == getattr(rollout, name)
        for name in FIELDS:
            assert torch.equal(read.tokenwise(name), rollout.tokenwise(name)), name
        assert read.is_scored and read.behaviour_logprobs.isnan().all()
