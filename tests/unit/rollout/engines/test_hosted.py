"""A sampler that is our own student on a server: what is sent, and what becomes of its answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.fake_server import Answer, Fake, vllm_of
from tests.support.tiny_models import pair
from tutelage.errors import ConfigurationError, ServerError
from tutelage.models import ModelSet
from tutelage.policies import Student, Teacher, Temperature
from tutelage.rollout import Engines, HostedEngine, HostedSettings, PairedEngine, Request, Server
from tutelage.rollout.samplers import ServedVLLM
from tutelage.types import Prompt


def engine_on(fake: Fake, models: ModelSet, folder: Path, **fields: Any) -> HostedEngine:
    settings = HostedSettings(tolerance=1e-6, tolerance_max=1e-5, weights_folder=str(folder), **fields)
    return HostedEngine(models, ServedVLLM(Server(fake.url, most_at_once=1)), settings, support_size=4)


def test_the_sampler_takes_over_where_the_policy_is_the_student(play: Callable[[Answer], Fake], tmp_path: Path) -> None:
    models = pair()
    fake = play(vllm_of(models.student))
    paired = PairedEngine(models.student, models.teacher, vocabulary=models.vocabulary, support_size=4)
    engine = Engines([engine_on(fake, models, tmp_path / "weights"), paired])
    engine.sync(Teacher(), 0)
    (made,) = engine.answer(Teacher(), Request([Prompt([1, 2])], 3))
    assert fake.asked == [] and made.rescored_logprobs is None
    prompts = [Prompt([1, 2], teacher_tokens=[3, 1, 2]), Prompt([4])]
    engine.sync(Student(), 0)
    rollouts = engine.answer(Student(), Request(prompts, 12, 8))
    assert [path for path, _ in fake.asked][:3] == ["/collective_rpc", "/reset_prefix_cache", "/v1/models"]
    assert fake.asked[0][1] == {"method": "reload_weights", "kwargs": {"weights_path": str(tmp_path / "weights")}}
    assert (tmp_path / "weights" / "model.safetensors").is_file()
    finished = [r for r in rollouts if r.finished]
    assert 0 < len(finished) < 16 and all(r.response_tokens[-1] == 7 for r in finished)
    assert all(8 not in r.response_tokens for r in rollouts)
    for r in rollouts:  # both stop ids are one event, which is what our own forward says
        assert r.rescored_logprobs is not None
        torch.testing.assert_close(r.behaviour_logprobs.double(), r.rescored_logprobs, atol=1e-6, rtol=0)
    scored = paired.score(rollouts)
    assert scored[0].teacher_prompt_tokens == [3, 1, 2] and scored[0].is_scored
    # The same seeds whatever the batch; the weights of a step are given once.
    engine.sync(Student(), 0)
    again = engine.answer(Student(), Request([Prompt([4], stream=1)], 12, 8))
    assert [r.response_tokens for r in again] == [r.response_tokens for r in rollouts[8:]]
    assert [path for path, _ in fake.asked].count("/collective_rpc") == 1


def test_an_update_is_handed_over_and_a_difference_is_refused(play: Callable[[Answer], Fake], tmp_path: Path) -> None:
    models, request = pair(), Request([Prompt([1])], 4)
    fake = play(vllm_of(models.student))
    engine = engine_on(fake, models, tmp_path)
    engine.sync(Student(), 0)
    engine.answer(Student(), request)
    with torch.no_grad():
        next(iter(models.student.module.parameters())).add_(0.01)
    engine.sync(Student(), 1)
    engine.answer(Student(), request)
    assert [path for path, _ in fake.asked].count("/reset_prefix_cache") == 2
    for wrong in (vllm_of(models.student, shift=1e-3), vllm_of(pair().teacher)):
        other = engine_on(play(wrong), models, tmp_path)
        other.sync(Student(), 0)
        with pytest.raises(ServerError, match=r"sampled tokens differ from ours by .* vllm\.tolerance allows 1e-06"):
            other.answer(Student(), request)


def test_other_temperatures_and_no_statistics(play: Callable[[Answer], Fake], tmp_path: Path) -> None:
    models, request = pair(), Request([Prompt([1])], 4)
    fake = play(vllm_of(models.student))
    engine = engine_on(fake, models, tmp_path)
    engine.sync(Student(), 0)
    (rollout,) = engine.answer(Temperature(0.0), replace(request, records_statistics=False))
    assert rollout.support_ids is None and rollout.behaviour_logprobs.tolist() == [0.0] * len(rollout)
    assert fake.asked[-1][1]["temperature"] == 0 and fake.asked[-1][1]["stop_token_ids"] == [7, 8]
    with pytest.raises(ServerError, match="logprobs-mode processed_logprobs"):  # this one samples at 1
        engine.answer(Temperature(0.5), request)
    with pytest.raises(ConfigurationError, match=r"the policy Teacher\(.*\) asks for more"):
        engine.answer(Teacher(), request)
