from __future__ import annotations

import itertools
import math
import os
import signal

import pytest
import torch

from tutelage.errors import ConfigurationError, NonFiniteError, RunInterrupted
from tutelage.runtime import LocalRuntime
from tutelage.training import OptimizerSettings, PromptOrder
from tutelage.training.interruption import Interruption
from tutelage.training.run_files import RunFolder


def test_learning_rate_rises_over_the_warmup_and_stays() -> None:
    settings = OptimizerSettings(learning_rate=1e-5, warmup_steps=15)
    rates = [settings.rate_at(step) for step in range(30)]
    assert rates[0] == pytest.approx(1e-5 * (1 - math.cos(math.pi / 15)) / 2)
    assert all(a < b for a, b in itertools.pairwise(rates[:15]))
    assert rates[14:] == pytest.approx([1e-5] * 16)
    assert OptimizerSettings(warmup_steps=0).rate_at(0) == 1e-5


def test_the_optimizer_has_the_papers_settings() -> None:
    group = OptimizerSettings().make(torch.nn.Linear(2, 2)).param_groups[0]
    assert (group["betas"], group["weight_decay"], group["eps"]) == ((0.9, 0.999), 0.01, 1e-8)


@pytest.mark.parametrize(
    "fields",
    [{"learning_rate": 0.0}, {"learning_rate": math.nan}, {"weight_decay": -1.0}, {"beta1": 1.0}, {"warmup_steps": -1}],
)
def test_bad_optimizer_fields_are_refused(fields) -> None:
    with pytest.raises(ConfigurationError, match=f"optimizer.{next(iter(fields))} is"):
        OptimizerSettings(**fields)


def test_prompts_are_walked_in_order_over_epochs() -> None:
    order = PromptOrder(num_prompts=5, prompts_per_step=2)
    assert [order.indices(step) for step in range(4)] == [[0, 1], [2, 3], [4, 0], [1, 2]]


def test_shuffled_epochs_visit_every_prompt_once_and_can_start_anywhere() -> None:
    order = PromptOrder(num_prompts=7, prompts_per_step=3, shuffles=True, seed=4)
    walked = [i for step in range(14) for i in order.indices(step)]
    epochs = [walked[start : start + 7] for start in range(0, 42, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 3
    assert PromptOrder(7, 3, True, 4).indices(9) == order.indices(9)
    assert PromptOrder(7, 3, True, 5).indices(0) != order.indices(0)


def test_update_clips_and_refuses_what_is_not_finite() -> None:
    parameter = torch.nn.Parameter(torch.zeros(4))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    parameter.grad = torch.full((4,), 5.0)
    assert LocalRuntime("cpu").update(optimizer, 1.0) == pytest.approx(10.0)
    torch.testing.assert_close(parameter.detach(), torch.full((4,), -0.5))
    parameter.grad = torch.tensor([1.0, math.nan, 0, 0])
    with pytest.raises(NonFiniteError):
        LocalRuntime("cpu").update(optimizer, 1.0)
    torch.testing.assert_close(parameter.detach(), torch.full((4,), -0.5))
    assert parameter.grad is None


def test_unknown_devices_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="runtime.device is 'tpu'"):
        LocalRuntime("tpu")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_interrupts_at_once_and_waits_for_what_is_protected(number) -> None:
    reached = []
    before = signal.getsignal(number)
    with pytest.raises(RunInterrupted, match=signal.Signals(number).name), Interruption() as interruption:
        with interruption.protected():
            os.kill(os.getpid(), number)
            reached.append("inside")
        reached.append("after")
    assert reached == ["inside"]
    with pytest.raises(RunInterrupted), Interruption():
        os.kill(os.getpid(), number)
        reached.append("unprotected")
    assert reached == ["inside"]
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_is_not_held_back() -> None:
    with pytest.raises(KeyboardInterrupt), Interruption() as interruption, interruption.protected():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_truncating_keeps_the_past_and_sets_the_rest_aside(tmp_path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.create("")
    folder.append("metrics.jsonl", [{"step": step} for step in range(5)])
    folder.append("evaluations.jsonl", [{"step": step, "name": "a"} for step in (0, 2, 4)])
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')  # killed while writing
    folder.truncate_to(2)
    assert folder.read("metrics.jsonl") == [{"step": 0}, {"step": 1}]
    assert [record["step"] for record in folder.read("evaluations.jsonl")] == [0, 2]
    assert [record["step"] for record in folder.read("superseded.jsonl")] == [2, 3, 4, 4]
