"""Every test runs on one thread and one CPU, and asks no hub."""

from __future__ import annotations

import huggingface_hub
import pytest
import torch

from tests.support.tiny_models import ARCHITECTURES

torch.set_num_threads(1)
# Of names that stand for models and data sets only their form is looked at.
huggingface_hub.constants.HF_HUB_OFFLINE = True  # type: ignore[misc]


@pytest.fixture(params=sorted(ARCHITECTURES))
def architecture(request: pytest.FixtureRequest) -> str:
    return str(request.param)
