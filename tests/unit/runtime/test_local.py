"""One process on one device."""

from __future__ import annotations

import math

import pytest
import torch

from tutelage.errors import ConfigurationError, NonFiniteError
from tutelage.runtime import LocalRuntime


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
