"""The settings of AdamW and its learning rate."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from tutelage.errors import ConfigurationError
from tutelage.training import OptimizerSettings


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
